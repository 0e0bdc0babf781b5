import numpy as np
import pytest

import moopt
from moopt.errors import ProblemError
from moopt.jobs import Failure, Job, perform
from moopt.problem import CAPABILITIES, capabilities
from moopt.testing.problems import TINY, Landscape
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


def outcome(problem: moopt.Problem, kind="evaluate"):
    return perform(problem, Job(0, {"bits": 2, "kind": "a"}, kind))


def test_an_evaluation_comes_back_as_floats():
    found = outcome(Returning(moopt.Evaluation({"loss": np.float32(0.5), "latency": 2}, {"loss": 1})))
    assert found == moopt.Evaluation({"loss": 0.5, "latency": 2.0}, {"loss": 1.0})
    assert all(type(value) is float for value in found.values.values())


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
    ],
)
def test_a_broken_evaluation_is_a_failure_that_says_why(found: object, kind: str, message: str):
    failure = outcome(Returning(found))
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert message in failure.message


@pytest.mark.parametrize(("known", "message"), [({}, "known gives no size"), ({"size": float("nan")}, "size = nan")])
def test_known_values_are_checked_too(known: dict, message: str):
    failure = outcome(Returning(moopt.Evaluation({"loss": 1.0, "latency": 1.0}), known))
    assert isinstance(failure, Failure)
    assert message in failure.message


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
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ProblemError):
        make()


def test_labels_carry_units():
    assert moopt.Objective("size", unit="MB").label == "size [MB]"
    assert moopt.Objective("loss").label == "loss"
