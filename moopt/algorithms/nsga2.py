"""NSGA-II: survivors by non-domination rank, then by crowding distance. The loop is that of `genetic`."""

from __future__ import annotations

import numpy as np

from moopt import pareto
from moopt.algorithms.genetic import FloatArray, Genetic, IntArray, Survivors


class NSGA2(Genetic):
    """The elitist genetic algorithm of Deb et al. (2002), with constrained dominance.

    A generation is counted from issued trials: its offspring are a function of the seed and of what was told when its
    first trial is asked for, so that workers never wait. The first population is spread over the levels of the ordinal
    variables if an objective is known; the trials a study opens with belong to it.

    Args:
        population_size: Trials in a generation.
    """

    def __init__(self, population_size: int = 50) -> None:
        super().__init__(population_size)

    def survivors(self, candidates: IntArray, rng: np.random.Generator) -> Survivors:
        archive = self.archive
        values, points = (np.array([each[i] for i in candidates]) for each in (archive.values, archive.points))
        ranks = _ranks(values, np.array([archive.violations[i] for i in candidates]))
        crowding = np.zeros(len(points))
        for rank in np.unique(np.sort(ranks)[: self.population_size]):
            front = np.flatnonzero(ranks == rank)
            crowding[front] = pareto.crowding(points[front])
        best = np.lexsort((rng.random(len(points)), -crowding, ranks))[: self.population_size]
        return Survivors(candidates[best], np.column_stack([ranks[best], -crowding[best]]))


def _ranks(values: FloatArray, violations: FloatArray) -> IntArray:
    """Non-domination ranks of values [n, m]; behind them what is infeasible, the least violation [n] first."""
    ranks, feasible = np.zeros(len(values), dtype=np.int64), violations <= 0
    ranks[feasible] = pareto.ranks(values[feasible])
    ranks[~feasible] = len(values) + np.unique(violations[~feasible], return_inverse=True)[1]
    return ranks
