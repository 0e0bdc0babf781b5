"""Surrogate-assisted evolution: NSGA-II on a model of what was measured, evaluated where the front is thin.

The idea of AMQ (Lee et al. 2025), with a model that starts from the problem's sensitivities and learns the residual.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.acquisition import Beliefs
from moopt.algorithms.base import positive
from moopt.algorithms.modelled import HARDLY, Modelled
from moopt.algorithms.variation import Variation, tournaments
from moopt.jobs import Job
from moopt.one_thread import one_thread
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class SurrogateEvolution(Modelled):
    """Evolves a population on the expected values of every objective, and evaluates what fills the front's gaps.

    Every measured objective and constraint has a surrogate of its own (see `moopt.surrogates`), known ones are exact.
    Of the candidates that the model expects on the front, those are evaluated that lie farthest from what was measured
    there, each beside the others.

    Args:
        population_size: Candidates of the population on the model.
        generations: How often it is renewed before something is evaluated.
        initial: Trials before a surrogate is fitted, those a study opens with included; None: as the space needs.
        prior: Whether the problem's sensitivities are a prior of the first measured objective.
    """

    def __init__(
        self, population_size: int = 100, generations: int = 20, initial: int | None = None, prior: bool = True
    ) -> None:
        super().__init__(initial, prior)
        self.population_size = positive("population_size", population_size)
        self.generations = positive("generations", generations)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._variation = Variation(problem)

    @one_thread()
    def ask(self, n: int) -> list[Job]:
        rng = self.rng()
        beliefs = self.beliefs()
        if beliefs is None:
            return self.jobs(self.unseen(self._scattered(rng), n, rng))
        picked = map(self.problem.space.decode, self._picked(beliefs, self._evolved(beliefs, rng), n))
        chosen = list(filter(self.within_known_bounds, picked))  # tables of what is known may be wrong for a few
        return self.foretold(self.jobs([*chosen, *self._others(chosen, n - len(chosen), rng)]), beliefs)

    def _others(self, chosen: list[Config], n: int, rng: np.random.Generator) -> list[Config]:
        """What is evaluated where the model expects nothing new: variations of the front."""
        if n <= 0:
            return []
        front = self._rows(np.flatnonzero(self._best_measured()))
        near = map(self.problem.space.decode, self._proposals.varied(front, 64, 0.1, rng))
        found = self.unseen(near, n, rng, chosen)
        return found if len(found) == n else [*found, *self.unseen(self._scattered(rng), n - len(found), rng, chosen)]

    def _evolved(self, beliefs: Beliefs, rng: np.random.Generator) -> FloatArray:
        """The candidates [n, d] that the model expects on the front and that may be evaluated."""
        rows = np.vstack([self._rows(self._ranked()), self._proposals.spread(self.population_size // 2, rng)])
        pairs = (self.population_size + 1) // 2
        for _ in range(self.generations):
            rows, order = self._selected(beliefs, rows)
            parents = tournaments(order, 2 * pairs, rng).reshape(2, pairs)
            children = self._variation.mutated(self._variation.crossed(rows[parents], rng), rng)
            rows = np.unique(np.vstack([rows, children]), axis=0)
        rows = self._fresh(rows, list(self._pending.values()))
        if not len(rows):
            return rows
        values, broken = self._expected(beliefs, rows)
        broken = np.where(self._success(rows) < HARDLY, np.inf, broken)
        kept = broken <= broken.min()
        found: FloatArray = rows[kept][pareto.nondominated(values[kept])]
        return found

    def _selected(self, beliefs: Beliefs, rows: FloatArray) -> tuple[FloatArray, IntArray]:
        """The best of rows [n, d] on the model, and the place of each, the least is best."""
        values, broken = self._expected(beliefs, rows)
        points, ranks = self._counted(values), np.zeros(len(rows), dtype=np.int64)
        holds = broken <= 0
        ranks[holds] = pareto.ranks(values[holds])
        ranks[~holds] = len(rows) + np.unique(broken[~holds], return_inverse=True)[1]
        crowding = np.zeros(len(rows))
        for rank in np.unique(np.sort(ranks)[: self.population_size]):
            crowding[ranks == rank] = pareto.crowding(points[ranks == rank])
        best = np.lexsort((-crowding, ranks))[: self.population_size]
        fitness = np.column_stack([ranks[best], -crowding[best]])
        return rows[best], np.unique(fitness, axis=0, return_inverse=True)[1].reshape(-1)

    def _expected(self, beliefs: Beliefs, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Expected objectives [n, m], signs turned, of rows [n, d], and what speaks against each, [n]."""
        values, exact = beliefs.expected(rows), self._known.values(rows)
        excess = [
            constraint.excess(
                exact[name] if (name := constraint.name) in exact else beliefs.surrogates[name].mean(rows)
            )
            for constraint in self.problem.constraints
        ]
        broken = np.maximum(excess, 0.0).sum(axis=0) if excess else np.zeros(len(rows))
        return values, np.nan_to_num(broken, nan=np.inf) + self.archive.outside(values)

    def _picked(self, beliefs: Beliefs, rows: FloatArray, n: int) -> FloatArray:
        """At most n of rows [k, d], each as far from the measured front, what is pending and the others as can be."""
        if not len(rows):
            return rows
        measured = np.array(self.archive.values)[self._best_measured()]
        pending = np.array(list(self._pending.values())).reshape(-1, rows.shape[1])
        taken = self._counted(np.vstack([measured, *([beliefs.expected(pending)] if len(pending) else [])]))
        points = self._counted(beliefs.expected(rows))
        span = np.ptp(np.vstack([taken, points]), axis=0)
        scaled, beside = (each / np.where(span > 0, span, 1.0) for each in (points, taken))
        distance = np.sqrt(((scaled[:, None] - beside[None]) ** 2).sum(axis=2)).min(axis=1)
        chosen: list[int] = []
        for _ in range(min(n, len(rows))):
            chosen.append(int(distance.argmax()))
            distance = np.minimum(distance, np.sqrt(((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1)))
            distance[chosen] = -np.inf
        return rows[chosen]

    def _best_measured(self) -> npt.NDArray[np.bool_]:
        """Which of the archive's trials are on the front, of those that the least speaks against, [n]."""
        found = np.zeros(len(self.archive), dtype=bool)
        places = np.array(self.archive.least_violating(range(len(self.archive))))
        found[places[pareto.nondominated(np.array(self.archive.values)[places])]] = True
        return found

    def _ranked(self) -> IntArray:
        """The archive's best trials by rank, as many as half of a population."""
        ranks = pareto.ranks(np.array(self.archive.values)) + len(self.archive) * (
            np.array(self.archive.violations) > 0
        )
        found: IntArray = np.argsort(ranks, kind="stable")[: self.population_size // 2]
        return found
