"""The fidelity ladder: it prunes what is surely dominated and nothing else, saves tokens, and replays exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.algorithms import EvoPress, Ladder
from moopt.errors import AlgorithmError, CapabilityError
from moopt.testing.algorithms import replays
from moopt.testing.landscapes import Landscape, Sequences


class Told(moopt.algorithms.Random):
    """Remembers what it is told of each trial, and which trials it thinks are under way."""

    def start(self, problem: moopt.Problem, seed: int) -> None:
        super().start(problem, seed)
        self.told: dict[int, Mapping[str, float] | None] = {}
        self.under_way: set[int] = set()

    def issued(self, jobs: object) -> None:
        super().issued(jobs)  # type: ignore[arg-type]
        self.under_way |= {job.trial for job in jobs}  # type: ignore[attr-defined]

    def tell(self, outcomes: object) -> None:
        super().tell(outcomes)  # type: ignore[arg-type]
        for job, outcome in outcomes:  # type: ignore[attr-defined]
            self.under_way.remove(job.trial)
            assert job.trial not in self.told
            self.told[job.trial] = getattr(outcome, "values", None)


def problem() -> Sequences:
    return Sequences(6, tokens=16, rungs=(4, 8))


def test_what_is_pruned_is_dominated_by_something_that_was_evaluated() -> None:
    searched, told = problem(), Told()
    history = moopt.Study("s", searched, Ladder(told)).run(trials=60).history
    pruned = [trial for trial in history.trials if trial.state == "pruned"]
    complete = [trial for trial in history.trials if trial.state == "complete"]
    assert len(complete) == 60
    assert len(pruned) > 20
    best = history.values(complete)
    for trial in pruned:
        true = searched.evaluate(trial.config, searched.fidelity).values["loss"]
        value = np.array([true, searched.known(trial.config)["size"]])
        assert (best <= value).all(axis=1).any(), f"trial {trial.number} is on the front"
        said = told.told[trial.number]
        assert said is not None
        assert said["loss"] == pytest.approx(true, rel=0.7)
    assert set(told.told) == {trial.number for trial in history.trials}
    assert not told.under_way


def test_what_is_not_surely_dominated_climbs_every_rung() -> None:
    history = moopt.Study("s", problem(), Ladder("random")).run(trials=40).history
    for trial in history.trials:
        screens = [e.job.fidelity.tokens for e in history.events if e.job.trial == trial.number and e.outcome]
        expected = [16] if trial.label else [4, 8, 16]
        assert screens == (expected if trial.state == "complete" else expected[: len(screens)])
    assert not any(trial.state == "running" for trial in history.trials)


def test_it_finds_more_for_the_same_tokens() -> None:
    def volume(algorithm: object) -> float:
        history = moopt.Study("s", problem(), algorithm, seed=1).run(tokens=4000).history  # type: ignore[arg-type]
        values = history.values(history.feasible())
        return pareto.hypervolume(np.log(values), np.log([1.5, 50.0]))

    assert volume(Ladder("random", rungs=(4,))) > volume("random")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["nsga2", "chebyshev"])
def test_replay_at_any_point_asks_the_same(name: str, workers: int) -> None:
    replays(lambda: Ladder(name), problem(), trials=120, workers=workers, every=13)


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(path: str, *stops: int) -> list[object]:
        for trials in stops:
            study = moopt.Study("s", problem(), Ladder("nsga2"), tmp_path / path, seed=2).run(trials=trials)
        return [(t.config, t.state, t.values) for t in study.history.trials if t.state != "running"]

    assert run("twice.journal", 17, 40) == run("once.journal", 40)


def test_without_samples_everything_is_evaluated() -> None:
    class Bare(Landscape):
        fidelity = moopt.Fidelity(16)
        rungs = (4,)

    history = moopt.Study("s", Bare(), Ladder("nsga2")).run(trials=30).history
    assert {trial.state for trial in history.trials} == {"complete"}


def test_a_candidate_that_cannot_be_screened_is_evaluated() -> None:
    class Failing(Sequences):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            if fidelity.tokens < 16 and config["layer0"] == 2:
                raise ArithmeticError("no")
            return super().evaluate(config, fidelity)

    history = moopt.Study("s", Failing(6), Ladder("random", rungs=(4,))).run(trials=30).history
    assert sum(trial.state == "complete" for trial in history.trials) == 30
    assert all(t.state == "complete" for t in history.trials if t.config["layer0"] == 2)


def test_a_candidate_without_known_values_fails_and_the_study_goes_on(tmp_path: Path) -> None:
    class Unknown(Sequences):
        def known(self, config: moopt.Config) -> Mapping[str, float]:
            return {"size": float("nan")} if config["layer0"] == 3 and config["layer1"] > 3 else super().known(config)

    for trials in (20, 40):
        study = moopt.Study("s", Unknown(6), Ladder("nsga2", rungs=(4,)), tmp_path / "s.journal").run(trials=trials)
    states = [trial.state for trial in study.history.trials]
    assert states.count("complete") + states.count("failed") == 40
    assert "failed" in states


def test_what_screens_by_itself_is_not_put_on_a_ladder() -> None:
    for inner in (EvoPress(), Ladder("nsga2")):
        with pytest.raises(AlgorithmError, match="screens by itself"):
            Ladder(inner)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithm": 3}, "expected an algorithm, or the name of one"),
        ({"algorithm": "none"}, "There is no algorithm 'none'"),
        ({"rungs": (0,)}, "a rung is 0"),
        ({"rungs": 5}, "rungs is 5; expected ever more tokens"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": "high"}, "confidence is 'high'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AlgorithmError, match=said):
        Ladder(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rungs", [(), (4, 16), (32,)])
def test_rungs_that_are_no_ladder_are_refused(rungs: tuple[int, ...]) -> None:
    with pytest.raises(AlgorithmError, match="all below the problem's own 16"):
        Ladder("random", rungs=rungs).start(problem(), 0)


def test_it_needs_what_the_wrapped_algorithm_needs() -> None:
    with pytest.raises(CapabilityError, match="gradient"):
        moopt.Study("s", problem(), Ladder("rco"))
