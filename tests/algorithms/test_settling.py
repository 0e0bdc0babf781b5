"""What a problem wants settled first is searched by itself, and everything that follows goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moopt
from moopt.algorithms import NSGA2, QNEHVI, Random
from moopt.algorithms.opening import Opening
from moopt.algorithms.settling import MOST, TRIALS, Alone
from moopt.errors import MooptError
from moopt.jobs import Failure, Job, perform
from moopt.preference import Preference
from moopt.problem import Constraint, Evaluation, Fidelity, Objective, Problem
from moopt.space import Choice, Config, Float, Ordinal, Simplex, Space

FIRST = ("mix.a", "mix.b", "kind")
COUNT = min(TRIALS * len(FIRST), MOST)


class Mixed(Problem):
    """A mixture of which the best is (0.6, 0.2) of kind "good", and widths that damage it and have a cost."""

    objectives = (Objective("loss"), Objective("size", known=True))
    first = FIRST
    fails = False

    def __init__(self, widths: int = 4, losses: int = 1) -> None:
        self.widths = [f"w{i}" for i in range(widths)]
        names = dict.fromkeys(self.widths, Ordinal(2, 4, 8))
        self.space = Space({"mix.a": Float(0, 1), "mix.b": Float(0, 1), "kind": Choice("bad", "good"), **names})
        if losses == 2:
            self.objectives = (Objective("loss"), Objective("other"), Objective("size", known=True))
        self.sensitivity = Fidelity(1, "told")

    def known(self, config: Config) -> Mapping[str, float]:
        return {"size": float(sum(config[name] for name in self.widths))}

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        if self.fails and config["kind"] == "good":
            return Evaluation({"loss": float("nan")})
        damage = sum(0.1 * 2.0 ** -config[name] for name in self.widths) + 0.3 * (config["kind"] == "bad")
        off = (config["mix.a"] - 0.6) ** 2 + (config["mix.b"] - 0.2) ** 2
        values = {"loss": 1 + off + damage, "other": 1 + (config["mix.a"] - 0.2) ** 2 + damage}
        return Evaluation({o.name: values[o.name] for o in self.objectives if not o.known})

    def baselines(self) -> Mapping[str, Config]:
        plain = {"mix.a": 0.5, "mix.b": 0.5, "kind": "bad", **dict.fromkeys(self.widths, 8)}
        return {"plain": plain, "only a": {**plain, "mix.a": 1.0, "mix.b": 0.0}}

    def later_baselines(self, config: Config) -> Mapping[str, Config]:
        return {f"uniform-{bits}": {**config, **dict.fromkeys(self.widths, bits)} for bits in (2, 4)}

    def costs(self) -> Any:
        return np.array([[0, 0, -1], *[[2, 4, 8]] * len(self.widths)])

    def sensitivities(self, method: str, tokens: int) -> Any:
        return np.array([[0, 0, np.inf], *[[0.1 / (1 + i), 0.05, 0.0] for i in range(len(self.widths))]])


def run(problem: Problem, trials: int, width: int = 1, algorithm: Any = None) -> list[Job]:
    """The evaluations of an opened search, so many asked for at a time."""
    opening = opened(problem, algorithm or Random())
    found: list[Job] = []
    while len(found) < trials:
        jobs = opening.ask(width)
        assert jobs
        assert width == 1 or opening.ask(width) == jobs  # asking changes nothing
        opening.issued(jobs)
        found += [job for job in jobs if job.kind == "evaluate"]
        opening.tell([(job, perform(problem, job)) for job in jobs])
    return found


def opened(problem: Problem, algorithm: Any) -> Opening:
    opening = Opening(algorithm)
    opening.start(problem, 0)
    return opening


def of_first(job: Job) -> tuple[Any, ...]:
    return tuple(job.config[name] for name in FIRST)


@pytest.mark.parametrize("width", [1, 4])
def test_what_comes_first_is_settled_before_all_others(width: int):
    problem = Mixed()
    jobs = run(problem, 30, width)
    assert [job.label for job in jobs[:2]] == ["plain", "only a"]
    assert all(job.config[name] == 8 for job in jobs[:COUNT] for name in problem.widths)
    assert [job.trial for job in jobs] == list(range(len(jobs)))
    best = min(jobs[:COUNT], key=lambda job: problem.evaluate(job.config, problem.fidelity).values["loss"])
    later = [job for job in jobs if job.label is not None][2:]
    assert [job.label for job in later[:2]] == ["uniform-2", "uniform-4"]
    assert sum("knapsack" in str(job.label) for job in later) > 1
    assert all(of_first(job) == of_first(best) for job in later)
    assert jobs[COUNT : COUNT + len(later)] == later
    assert best.config["kind"] == "good"
    assert abs(best.config["mix.a"] - 0.6) < 0.1


def test_the_search_over_all_has_a_reference_of_its_own():
    problem = Mixed(widths=2, losses=2)
    jobs = run(problem, 26, algorithm=QNEHVI(initial=4))
    said = [job.note["reference"] for job in jobs if "reference" in job.note]
    assert [len(each) for each in said] == [3]
    assert any("predicted" in job.note for job in jobs[:COUNT])
    again = opened(problem, QNEHVI(initial=4))
    for job in [*again.ask(1), *jobs[:-1]]:  # the table, and then as a stored study replays it
        again.issued([job])
        again.tell([(job, perform(problem, job))])
    assert again.ask(1) == jobs[-1:]


def test_many_decisions_take_no_more_than_a_few_trials():
    problem = Mixed()
    names = {f"mix.{i}": Float(0, 1) for i in range(40)}
    problem.space = Space({**dict(problem.space.items()), **names})
    problem.first = (*FIRST, *names)
    problem.baselines = lambda: {"plain": {**Mixed().baselines()["plain"], **dict.fromkeys(names, 0.5)}}  # type: ignore[method-assign]
    jobs = run(problem, MOST + 2)
    assert sum(all(job.config[name] == 8 for name in problem.widths) for job in jobs) == MOST


def test_of_several_losses_the_one_nearest_to_the_best_of_each():
    jobs = run(Mixed(losses=2), 20)
    uniform = next(job for job in jobs if job.label == "uniform-4")
    assert 0.25 < uniform.config["mix.a"] < 0.55  # one is best at 0.6, the other at 0.2


def test_what_fails_settles_nothing():
    problem = Mixed()
    problem.fails = True
    jobs = run(problem, 22)
    assert next(job for job in jobs if job.label == "uniform-2").config["kind"] == "bad"
    problem.evaluate = lambda config, fidelity: Evaluation({"loss": float("nan")})  # type: ignore[method-assign]
    jobs = run(problem, 22)
    assert of_first(next(job for job in jobs if job.label == "uniform-2")) == (0.5, 0.5, "bad")


def test_it_waits_for_what_is_under_way():
    problem = Mixed()
    opening = opened(problem, NSGA2(population_size=8))
    jobs: list[Job] = []
    while asked := opening.ask(4):
        opening.issued(asked)
        jobs += asked
    assert len(jobs) == 1 + COUNT  # the table, too
    for job in jobs[:-1]:
        opening.tell([(job, perform(problem, job))])
        assert not opening.ask(4)
    opening.tell([(jobs[-1], Failure("killed", "a worker died"))])
    assert opening.ask(1)[0].label == "uniform-2"


def test_within_bounds_the_dearest_that_they_allow_is_what_all_others_are():
    problem = Mixed()
    problem.constraints = (Constraint("size", 20),)
    jobs = run(problem, 26)
    assert all(problem.known(job.config)["size"] <= 20 for job in jobs)
    assert [job.label for job in jobs[: COUNT + 1]] == ["plain", "only a", *[None] * (COUNT - 2), "uniform-2"]
    settling = [job for job in jobs if all(job.config[name] == 4 for name in problem.widths)]
    assert len(settling) >= COUNT
    later = [job for job in jobs if job.label is not None and "knapsack" in job.label]
    assert len({of_first(job) for job in later}) == 1
    assert later[0].config["kind"] == "good"


def test_nothing_is_settled_where_no_baseline_is_allowed(caplog: pytest.LogCaptureFixture):
    problem = Mixed()
    problem.later_baselines = lambda config: {}  # type: ignore[method-assign]
    problem.constraints = (Constraint("size", 20),)
    with caplog.at_level("INFO", "moopt"):
        jobs = run(problem, 12)
    assert all(problem.known(job.config)["size"] <= 20 for job in jobs)
    assert "mix.a, mix.b, kind are not settled first: no baseline is within the bounds" in caplog.text


def test_weights_of_a_preference_say_what_is_best():
    found = {}
    for name in ("loss", "other"):
        opening = Opening(Random(), Preference(weights={name: 1}))
        opening.start(Mixed(losses=2), 0)
        while (job := opening.ask(1)[0]).label != "uniform-4":
            opening.issued([job])
            opening.tell([(job, perform(Mixed(losses=2), job))])
        found[name] = job.config["mix.a"]
    assert found["loss"] > 0.5
    assert found["other"] < 0.35


def test_few_options_are_settled_in_as_many_trials():
    problem = Mixed()
    problem.first = ("kind",)
    jobs = run(problem, 12)
    assert [job.label for job in jobs[:2]] == ["plain", "only a"]
    assert next(job for job in jobs if job.label == "uniform-4").config["kind"] == "good"
    assert sum(job.label is None for job in jobs[:4]) == 1  # the other kind


@pytest.mark.parametrize("name", ["chebyshev", "nsga2", "nsga3", "map-elites", "parego", "surrogate-evolution", "tpe"])
def test_every_algorithm_goes_on_from_there(name: str, tmp_path: Path):
    for trials in (14, 34):
        study = moopt.Study("any", Mixed(widths=2), name, tmp_path / "s.journal").run(trials)
    assert [trial.state for trial in study.history.trials] == ["complete"] * 34


def test_a_study_that_stopped_while_settling_goes_on(tmp_path: Any):
    for trials in (5, 12, 26):
        study = moopt.Study("stopped", Mixed(), Random(), tmp_path / "s.journal").run(trials)
    whole = moopt.Study("whole", Mixed(), Random()).run(26)
    assert [t.config for t in study.history.trials] == [t.config for t in whole.history.trials]


def test_decisions_alone_keep_their_simplexes():
    space = Space({"share": Simplex("a", "b", "c"), "scale": Float(0, 2), "bits": Ordinal(2, 4)})
    problem = Mixed()
    problem.space = space
    fixed = space.sample(np.random.default_rng(0))
    alone = Alone(problem, [name for name in space.names if name != "bits"], fixed)
    assert set(alone.space.names) == set(space.names) - {"bits"}
    assert alone.space.simplexes.keys() == {"share"}
    drawn = alone.space.sample(np.random.default_rng(1))
    assert alone.own(space.validate(alone.whole(drawn))) == drawn
    assert alone.own({**alone.whole(drawn), "bits": 6 - fixed["bits"]}) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first": ("mix.a", "mix.z")}, r"Mixed\.first is \('mix\.a', 'mix\.z'\); expected names of decisions"),
        ({"first": None}, r"Mixed\.first is None"),
        ({"first": "kind"}, r"Mixed\.first is 'kind'"),
        ({"first": ("kind", "kind")}, "each once"),
        ({"baselines": dict}, "decisions to settle first and no baselines"),
        ({"objectives": (Objective("size", known=True),)}, "nothing that is measured"),
        ({"later_baselines": lambda config: None}, r"Mixed\.later_baselines gives None"),
        ({"later_baselines": lambda config: {"u": {"kind": "good"}}}, r"'u' of Mixed\.later_baselines"),
        (
            {"space": Space({"w": Simplex("a", "b", "c"), "w0": Ordinal(2, 4, 8)}), "first": ("w.a",)},
            "Mixed.first has a part of the simplex 'w'",
        ),
    ],
)
def test_what_cannot_be_settled_is_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    problem = Mixed()
    for name, value in changes.items():
        setattr(problem, name, value)
    if "space" in changes:
        problem.widths = ["w0"]
        plain = problem.space.sample(np.random.default_rng(0))
        problem.baselines = lambda: {"plain": plain}  # type: ignore[method-assign]
    with pytest.raises(MooptError, match=said):
        moopt.Study("wrong", problem, Random(), tmp_path / "s.journal").run(1)
    assert not moopt.Study("wrong", Mixed(), Random(), tmp_path / "s.journal").history.trials
