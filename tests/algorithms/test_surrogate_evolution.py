"""Surrogate-assisted evolution: the contract, the exact front from few evaluations, evaluated where it is thin."""

from __future__ import annotations

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.algorithms import Algorithm, SurrogateEvolution
from moopt.errors import AlgorithmError
from moopt.testing.algorithms import AlgorithmSuite, replays
from moopt_problems.synthetic import BitToy


class TestSurrogateEvolution(AlgorithmSuite):
    trials = 24

    def algorithm(self) -> Algorithm:
        return SurrogateEvolution(population_size=16, generations=4)


def share(problem: BitToy, algorithm: Algorithm, trials: int) -> float:
    history = moopt.Study("toy", problem, algorithm).run(trials).history
    front, reference = problem.front(), np.array([objective.reference for objective in problem.objectives])
    return history.hypervolume() / pareto.hypervolume(front, reference)


@pytest.mark.parametrize(("told", "least"), [(True, 0.97), (False, 0.9)], ids=["sensitivities", "none"])
def test_it_finds_the_exact_front_of_a_toy_in_few_evaluations(told: bool, least: float) -> None:
    problem = BitToy(12, interaction=1.0, scale="log", sensitivities=told)
    assert share(problem, SurrogateEvolution(), 60) > least


def test_what_it_evaluates_fills_gaps() -> None:
    problem = BitToy(12, scale="log")
    history = moopt.Study("toy", problem, SurrogateEvolution()).run(60).history
    sizes = np.sort([trial.values["size"] for trial in history.front()])
    assert np.diff(sizes).max() < 0.1 * np.ptp(sizes)


def test_replay_at_any_point_asks_the_same() -> None:
    problem = BitToy(8, interaction=1.0, scale="log")
    replays(lambda: SurrogateEvolution(generations=3), problem, trials=30, workers=2, every=5)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(AlgorithmError, match="generations is 0"):
        SurrogateEvolution(generations=0)
