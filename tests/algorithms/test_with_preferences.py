"""The contract of every algorithm still holds where a user prefers a region."""

from __future__ import annotations

import optuna

from moopt import Preference
from moopt.algorithms import NSGA2, NSGA3, QNEHVI, Algorithm, ChebyshevAnnealing, MAPElites, OptunaSampler, ParEGO
from moopt.algorithms.opening import Opening
from moopt.testing.algorithms import AlgorithmSuite

PREFERENCE = Preference(bounds={"f0": 0.3}, weights={"f0": 2.0})


class TestNSGA2(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return Opening(NSGA2(population_size=8), PREFERENCE)


class TestNSGA3(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return Opening(NSGA3(population_size=8), PREFERENCE)


class TestChebyshevAnnealing(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return Opening(ChebyshevAnnealing(trials=60, opening=8), PREFERENCE)


class TestMAPElites(AlgorithmSuite):
    trials = 20

    def algorithm(self) -> Algorithm:
        return Opening(MAPElites(opening=8), PREFERENCE)


class TestParEGO(AlgorithmSuite):
    trials = 12

    def algorithm(self) -> Algorithm:
        return Opening(ParEGO(opening=8, candidates=30), PREFERENCE)


class TestQNEHVI(AlgorithmSuite):
    trials = 9

    def algorithm(self) -> Algorithm:
        return Opening(QNEHVI(initial=6), PREFERENCE)


class TestTPE(AlgorithmSuite):
    trials = 14

    def algorithm(self) -> Algorithm:
        return Opening(OptunaSampler(lambda seed: optuna.samplers.TPESampler(seed=seed)), PREFERENCE)
