"""NSGA-III: reference directions keep a front of many objectives spread out, where crowding distances say little."""

from __future__ import annotations

import warnings
from math import comb

import numpy as np
from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival
from pymoo.core.population import Population
from pymoo.util.ref_dirs.das_dennis import DasDennis

from moopt.algorithms.genetic import FloatArray, Genetic, IntArray, Survivors
from moopt.algorithms.variation import Variation
from moopt.problem import Problem


class NSGA3(Genetic):
    """The many-objective genetic algorithm of Deb and Jain (2014), for four objectives and more.

    Survivors are those nearest to evenly spread directions from the ideal point, as many as the population holds
    (Das and Dennis 1998). Generations are counted like NSGA2's. The ideal point is that of all that was told, so
    that nothing has to be remembered from one generation to the next.

    Args:
        population_size: Trials in a generation.
    """

    def __init__(self, population_size: int = 100) -> None:
        super().__init__(population_size)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._variation = Variation(problem, eta=30.0, mating=1.0)  # Deb and Jain's
        self._directions = directions(len(problem.objectives), self.population_size)

    def survivors(self, candidates: IntArray, rng: np.random.Generator) -> Survivors:
        violations = np.array([self.archive.violations[i] for i in candidates])
        feasible = np.flatnonzero(violations <= 0)
        best = self._nearest(candidates[feasible], rng)
        behind = np.flatnonzero(violations > 0)
        behind = behind[np.argsort(violations[behind], kind="stable")][: max(0, len(self._directions) - len(best))]
        kept = np.concatenate([feasible[best], behind])
        return Survivors(candidates[kept], np.maximum(violations[kept], 0.0)[:, None])

    def _nearest(self, candidates: IntArray, rng: np.random.Generator) -> IntArray:
        """The positions among feasible `candidates` [n] of those that survive."""
        if len(candidates) == 0:
            return np.zeros(0, dtype=np.int64)
        archive = self.archive
        values = np.array([archive.points[i] for i in candidates])
        ideal = np.min([v for v, excess in zip(archive.points, archive.violations, strict=True) if excess <= 0], axis=0)
        span = values.max(axis=0) - ideal  # pymoo's thresholds are made for objectives from 0 to 1
        population = Population.new(F=(values - ideal) / np.where(span > 0, span, 1.0), at=np.arange(len(values)))
        survival = ReferenceDirectionSurvival(self._directions)
        survival.filter_infeasible = False
        survival.norm.ideal_point = np.zeros(len(ideal))
        with warnings.catch_warnings():  # pymoo silences all warnings for good
            kept = survival.do(None, population, n_survive=len(self._directions), random_state=rng)
        return np.asarray(kept.get("at"), dtype=np.int64)


def directions(objectives: int, most: int) -> FloatArray:
    """Evenly spread points [n, m] on the simplex, n as large as `most` allows, but at least m (Das and Dennis 1998)."""
    parts = 1
    while objectives > 1 and comb(objectives + parts, parts + 1) <= most:
        parts += 1
    found: FloatArray = DasDennis(parts, objectives).next()
    return found
