from pathlib import Path

import numpy as np
import pytest

import moopt
from moopt.errors import ProblemError
from moopt.jobs import Failure, Job, perform
from moopt.problem import CAPABILITIES, Objective, capabilities, counted
from moopt.testing.landscapes import TINY, Landscape
from moopt_problems.synthetic import BitToy


class Returning(moopt.Problem):
    """Evaluates to what it is given."""

    space = TINY
    objectives = (moopt.Objective("loss"), moopt.Objective("size", known=True))
    constraints = (moopt.Constraint("latency", 5.0),)

    def __init__(self, found: object, known: dict | None = None):
        self.found, self.gives = found, {"size": 1.0} if known is None else known

    def known(self, config):
        return self.gives

    def evaluate(self, config, fidelity):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def tokens(count: object) -> moopt.Evaluation:
    return moopt.Evaluation({"loss": 1.0, "latency": 1.0}, attributes={"forward_tokens": count})


def uncertain(**errors) -> moopt.Evaluation:
    return moopt.Evaluation({"loss": 1.0, "latency": 1.0}, **errors)


def outcome(problem: moopt.Problem, kind="evaluate"):
    return perform(problem, Job(0, {"bits": 2, "kind": "a"}, kind))


def test_an_evaluation_comes_back_as_floats():
    found = outcome(Returning(moopt.Evaluation({"loss": np.float32(0.5), "latency": 2}, {"loss": 1})))
    assert found == moopt.Evaluation({"loss": 0.5, "latency": 2.0}, {"loss": 1.0})
    assert all(type(value) is float for value in found.values.values())


def test_samples_may_be_arrays():
    found = outcome(Returning(uncertain(variances={"loss": np.float32(0.5)}, samples={"loss": np.arange(3.0)})))
    assert found == uncertain(variances={"loss": 0.5}, samples={"loss": [0.0, 1.0, 2.0]})


@pytest.mark.parametrize(
    ("found", "kind", "message"),
    [
        ({"loss": 1.0}, "contract", "returned dict, expected moopt.Evaluation"),
        (moopt.Evaluation({"loss": 1.0}), "contract", "no latency; expected loss, latency"),
        (moopt.Evaluation({"loss": 1.0, "latency": 1.0, "size": 1.0}), "contract", "size, which known"),
        (moopt.Evaluation({"loss": float("nan"), "latency": 1.0}), "nonfinite", "loss = nan"),
        (moopt.Evaluation({"loss": float("inf"), "latency": 1.0}), "nonfinite", "loss = inf"),
        (moopt.Evaluation({"loss": None, "latency": 1.0}), "nonfinite", "loss = None"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError", "ZeroDivisionError: by zero"),
        (moopt.errors.TextError("too short"), "TextError", "too short"),
        (Unspeakable(), "Unspeakable", "Unspeakable: it cannot say why"),
        (moopt.Evaluation({"loss": "1", "latency": 1.0}), "nonfinite", "loss = 1"),  # type: ignore[dict-item]
        (tokens(None), "contract", "forward_tokens = None; expected a number from 0"),
        (tokens(-1), "contract", "forward_tokens = -1"),
        (uncertain(variances={"loss": -1.0}), "contract", "loss = -1.0; expected a finite number from 0"),
        (uncertain(variances={"loss": float("inf")}), "contract", "loss = inf"),
        (uncertain(variances={"loss": [1.0]}), "contract", "loss = [1.0]"),
        (uncertain(variances=0.1), "contract", "variances or samples 0.1"),
        (uncertain(samples={"loss": [[1.0], [2.0]]}), "contract", "loss = [[1.0], [2.0]]; expected"),
        (uncertain(samples={"loss": [1.0, float("nan")]}), "contract", "loss = [1.0, nan]"),
        (uncertain(samples={"loss": ["a"]}), "contract", "loss = ['a']"),
        (uncertain(samples={"loss": 1.0}), "contract", "a flat list of finite numbers"),
        (uncertain(samples=[1.0, 2.0]), "contract", "variances or samples [1.0, 2.0]"),
    ],
)
def test_a_broken_evaluation_is_a_failure_that_says_why(found: object, kind: str, message: str):
    failure = outcome(Returning(found))
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert message in failure.message


class Knowing(Returning):
    """Tells of known values what it is given, or raises it."""

    def known(self, config):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


KNOWN = [
    ({}, "known gives no size"),
    ({"size": float("nan")}, "size = nan"),
    ({"size": "1"}, "size = '1'; expected finite numbers"),
    ({"size": None}, "size = None"),
    (7, "known gives 7; expected a number for each name"),
    (ZeroDivisionError("by zero"), "known raised ZeroDivisionError('by zero')"),
]


@pytest.mark.parametrize(("known", "message"), KNOWN)
def test_known_values_are_checked_too(known: object, message: str):
    problem = Knowing(moopt.Evaluation({"loss": 1.0, "latency": 1.0}), known)  # type: ignore[arg-type]
    failure = outcome(problem)
    assert isinstance(failure, Failure)
    assert message in failure.message
    history = moopt.Study("s", problem, "random").run(2).history
    assert [trial.state for trial in history.trials] == ["failed"] * 2
    assert message in history.trials[0].failure.message  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [np.int64(3), np.float32(3), np.array(3), 3])
def test_numbers_of_numpy_are_known_values_like_others(tmp_path: Path, size: object):
    problem = Knowing(moopt.Evaluation({"loss": 1.0, "latency": 1.0}), {"size": size})
    moopt.Study("s", problem, "random", tmp_path / "moopt.journal").run(2)
    assert moopt.load_history(tmp_path / "moopt.journal").trials[1].values["size"] == 3.0


def test_a_fingerprint_and_decisions_may_hold_numbers_of_numpy(tmp_path: Path):
    class Numbered(Landscape):
        def fingerprint(self):
            return {"identity": {"layers": np.int64(3), "sizes": np.arange(2)}, "environment": {}}

        def decisions(self):
            return [{**entry, "row": np.int64(1)} for entry in super().decisions()]

    for trials in (2, 3):
        moopt.Study("s", Numbered(TINY), "random", tmp_path / "moopt.journal").run(trials)


def test_interrupting_is_no_failure():
    class Interrupted(Landscape):
        def evaluate(self, config, fidelity):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome(Interrupted(TINY))


def test_a_job_the_problem_cannot_do_is_a_failure():
    assert "cannot do a job of kind 'gradient'" in outcome(Landscape(TINY), "gradient").message


def test_capabilities_are_the_methods_there_are():
    assert capabilities(Landscape()) == frozenset()
    assert capabilities(BitToy(4)) == {"moves", "costs", "sensitivities", "gradient"}
    assert set(CAPABILITIES) == {"moves", "repair", "costs", "features", "sensitivities", "gradient"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: moopt.Objective(""),
        lambda: moopt.Objective("loss", direction="minimize"),
        lambda: moopt.Constraint("latency", float("nan")),
        lambda: moopt.Constraint("latency", "5"),  # type: ignore[arg-type]
        lambda: moopt.Objective("loss", reference="x"),  # type: ignore[arg-type]
        lambda: moopt.Objective("loss", reference=float("nan")),
        lambda: moopt.Resources(threads=-1),
        lambda: moopt.Resources(threads="abc"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ProblemError):
        make()


def test_labels_carry_units():
    assert moopt.Objective("size", unit="MB").label == "size [MB]"
    assert moopt.Objective("loss").label == "loss"


def test_factors_count_on_a_logarithmic_scale() -> None:
    objectives = (Objective("loss", scale="log"), Objective("size"), Objective("gain", "max", scale="log"))
    values = np.array([[1.0, 5.0, -1.0], [10.0, 6.0, -10.0], [0.0, 7.0, -100.0]])
    found = counted(values, objectives)
    assert np.allclose(found[:, 1], values[:, 1])
    assert np.allclose(found[:2, 0], np.log([1, 10]))
    assert np.allclose(found[:, 2], -np.log([1, 10, 100]))  # still to be minimised, in the same order
    assert np.isfinite(found).all()
    order = np.array([-1.0, 0.0, 1e-15, 1e-3, 0.5, 1.0, 2.0])
    assert (np.diff(counted(order[:, None], objectives[:1])[:, 0]) >= 0).all()
    assert (np.diff(counted(-order[::-1, None], objectives[2:])[:, 0]) >= 0).all()
    assert counted(values, (Objective("a"), Objective("b"), Objective("c"))) is values
    with pytest.raises(ProblemError, match="scale 'sqrt'"):
        Objective("loss", scale="sqrt")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["trial", "seconds", "best"])
def test_a_name_that_a_column_of_every_table_has_is_refused(name: str):
    with pytest.raises(ProblemError, match="choose another name"):
        moopt.Objective(name)
    with pytest.raises(ProblemError, match="choose another name"):
        moopt.Constraint(name, 1.0)
