"""Frank-Wolfe merging: near the best mixture, with a gap that says how near, exact on replay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import moopt
from moopt.algorithms import FrankWolfeMerge
from moopt.errors import AlgorithmError, CapabilityError
from moopt.testing.algorithms import drive, evaluated, replays
from tests.algorithms.mixtures import Mixing


def least(problem: Mixing, models: Sequence[int] = range(4)) -> float:
    """The least mean loss of any mixture of some models, by another solver."""
    vectors = problem.vectors[:, list(models)]

    def loss(logits: np.ndarray) -> float:
        odds = np.exp(logits.reshape(vectors.shape[:2]))
        theta = np.einsum("gm,gmk->gk", odds / odds.sum(1, keepdims=True), vectors)
        return float(((theta - problem.targets) ** 2).sum(axis=(1, 2)).mean())

    return min(
        minimize(loss, np.random.default_rng(s).normal(size=vectors.shape[0] * vectors.shape[1])).fun for s in range(3)
    )


def means(study: moopt.Study) -> list[float]:
    return [float(np.mean(list(trial.values.values()))) for trial in study.history.trials if trial.values]


def test_it_comes_near_the_best_mixture():
    study = moopt.Study("mix", Mixing(), FrankWolfeMerge("hard", rounds=60), seed=0)
    study.run(66)
    optimum, alone = least(Mixing()), min(means(study)[:4])
    assert min(means(study)) - optimum < 0.03 * (alone - optimum)


def test_the_soft_kind_finds_the_best_mixture_of_what_it_chose():
    problem = Mixing(tasks=4)
    algorithm = FrankWolfeMerge("soft", updates=200, every=50, rate=0.2)
    drive(algorithm, problem, 210)
    optimum = least(problem, algorithm._chosen.tolist())
    found = [float(values.mean()) for values in algorithm.archive.values]
    assert len(algorithm._chosen) > 1
    assert min(found) - optimum < 0.01 * (min(found[:4]) - optimum)


def test_the_gap_is_never_negative_and_bounds_what_is_left():
    problem = Mixing()
    algorithm = FrankWolfeMerge("hard", rounds=40)
    drive(algorithm, problem, 80)
    optimum = least(problem)
    values = {
        job.trial: float(v.mean()) for job, v in zip(algorithm.archive.jobs, algorithm.archive.values, strict=True)
    }
    assert len(algorithm.gaps) > 30
    for trial, gap in algorithm.gaps.items():
        assert gap >= -1e-9
        assert values[trial] - optimum <= gap + 1e-6  # the loss is convex in the mixture


def test_it_ends_where_the_gap_is_small_and_begins_elsewhere():
    log = drive(FrankWolfeMerge("hard", rounds=500, tolerance=0.5), Mixing(), 150)
    gradients = [job for entry in log if not isinstance(entry, tuple) for job in entry if job.kind == "gradient"]
    assert max(job.note["search"] for job in gradients) >= 1
    assert max(job.note["step"] for job in gradients) < 500
    assert len({job.identity for job in gradients}) == len(gradients)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_replay_at_any_point_asks_the_same(kind: Any, workers: int):
    make = partial(FrankWolfeMerge, kind, rounds=5, updates=10, every=5)
    replays(make, Mixing(), trials=25, workers=workers, every=7)


def test_soft_mixtures_are_of_the_models_that_are_best_at_something():
    problem = Mixing(models=6, tasks=2)
    algorithm = FrankWolfeMerge("soft", updates=20, every=10)
    log = drive(algorithm, problem, 40)
    alone = {m: problem.evaluate(c, problem.fidelity).values for m, c in enumerate(problem.baselines().values())}
    best = {min(alone, key=lambda m: alone[m][name]) for name in ("loss-0", "loss-1")}
    for job in evaluated(log)[6:]:
        mixture = problem.mixture(job.config)
        assert set(np.flatnonzero(mixture.max(axis=0) > 1e-9)) <= best


def test_it_begins_from_a_model_of_the_pool():
    problem = Mixing()
    log = drive(FrankWolfeMerge("hard", begin="m2"), problem, 3)
    assert problem.mixture(evaluated(log)[0].config)[:, 2] == pytest.approx(1)


def test_one_model_that_is_best_at_everything_does_not_hold_it_up():
    log = drive(FrankWolfeMerge("soft", updates=10, every=5), Mixing(tasks=1), 60)
    assert len(evaluated(log)) > 8


class Bounded(Mixing):
    """Mixtures of at most half of the first model."""

    def __init__(self) -> None:
        super().__init__()
        self.constraints = (moopt.Constraint("first", 0.5),)

    def known(self, config: moopt.Config) -> dict[str, float]:
        return {"first": float(self.mixture(config)[:, 0].max())}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_steps_stop_short_of_known_bounds(kind: Any):
    problem = Bounded()
    jobs = evaluated(drive(FrankWolfeMerge(kind, updates=10, every=5), problem, 60))
    assert len(jobs) > 8
    assert all(problem.known(job.config)["first"] <= 0.5 for job in jobs)


class NoGradient(Mixing):
    def gradient(self, config: moopt.Config, fidelity: moopt.Fidelity) -> Any:
        raise RuntimeError("no gradient today")


def test_a_gradient_that_fails_ends_its_search_only():
    assert len(evaluated(drive(FrankWolfeMerge("hard"), NoGradient(), 12))) == 6  # each with a gradient


class Plain(Mixing):
    gradient = None  # type: ignore[assignment]


class NoSimplex(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.space = moopt.Space({"x": moopt.Float(0, 1)})


def test_what_it_cannot_search_is_said():
    with pytest.raises(CapabilityError, match="gradient"):
        moopt.Study("x", Plain(), FrankWolfeMerge("hard"))
    with pytest.raises(AlgorithmError, match="weights on simplexes"):
        drive(FrankWolfeMerge("hard"), NoSimplex(), 1)
    with pytest.raises(AlgorithmError, match="begin is 'm9'; expected one of the models m0"):
        drive(FrankWolfeMerge("hard", begin="m9"), Mixing(), 1)
    for arguments in ({"begin": "m1"}, {"kind": "hard", "begin": 3}):
        with pytest.raises(AlgorithmError, match=r"begin is .*; expected the name of a model, for a hard search"):
            FrankWolfeMerge(**arguments)  # type: ignore[arg-type]
    with pytest.raises(AlgorithmError, match="kind is 'firm'"):
        FrankWolfeMerge("firm")  # type: ignore[arg-type]
