"""What comes next to the best candidates within budgets, by a model of all that was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moopt.acquisition import Beliefs, expected_improvement
from moopt.algorithms.linearisation import Linearisation
from moopt.algorithms.modelled import HARDLY, Modelled
from moopt.jobs import Job
from moopt.one_thread import one_thread
from moopt.problem import Problem

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PARENTS = 8
"""The best candidates within a budget whose neighbours are looked at: from the best alone one comes to its optimum."""
POOL = 200
"""The neighbours that the model is asked about: those of which the averaged tables promise most."""


class Exchanges(Modelled):
    """Changes one or two decisions of the best candidates within a budget, the budgets in turn.

    Tables of single changes promise the same of an exchange wherever it is made. A surrogate of what was measured (see
    `moopt.surrogates`) knows where that was wrong: of what the tables promise most of, the exchange with the largest
    expected improvement on the best is evaluated. Without a surrogate it is the one that the tables promise most of.

    Args:
        loss: The place of the objective that is lowered.
        costs: The cost of each option, [decisions, options]; -1 where there is none.
        nears: The budgets, and what is known of changes near the best within each.
    """

    def __init__(self, loss: int, costs: IntArray, nears: Sequence[Linearisation]) -> None:
        super().__init__()
        self.nears = nears
        self._loss, self._costs = loss, costs

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._made: dict[tuple[int, int], tuple[FloatArray, tuple[FloatArray, list[IntArray]]]] = {}

    @one_thread()
    def ask(self, n: int) -> list[Job]:
        """At most n exchanges at the budget whose turn it is; none where all of those were evaluated."""
        beliefs = self.beliefs()
        for turn in range(len(self.nears)):
            near = self.nears[(self.next_trial + turn) % len(self.nears)]
            best = self._best(near.budget)
            rows = self._beside(near, best)
            if len(rows) and beliefs is not None:
                rows = rows[np.argsort(-self._promise(beliefs, rows, best[0]), kind="stable")]
            if len(rows):
                jobs = self.jobs(map(self.problem.space.decode, rows[:n]))
                return jobs if beliefs is None else self.foretold(jobs, beliefs)
        return []

    def _best(self, budget: int) -> list[int]:
        """The best feasible trials within a budget, the best first, as numbers of the archive."""
        codes = np.array(self.archive.codes).reshape(-1, len(self._costs))
        costs = self._costs[np.arange(len(self._costs)), (codes - self.problem.space.lower).astype(np.int64)].sum(
            axis=1
        )
        places = np.flatnonzero((np.array(self.archive.broken) <= 0) & (costs <= budget))
        return sorted(places.tolist(), key=lambda i: float(self.archive.values[i][self._loss]))[:PARENTS]

    def _beside(self, near: Linearisation, places: Sequence[int]) -> FloatArray:
        """The encoded exchanges [k, d] from some trials, by what tables promise of them, the best first."""
        promised: list[FloatArray] = []
        choices: list[IntArray] = []
        for place in places:
            change, found = self._from(near, place)
            promised.append(self.archive.values[place][self._loss] + change)
            choices += found
        if not choices:
            return np.zeros((0, len(self.problem.space)))
        order = np.argsort(np.concatenate(promised), kind="stable")
        rows = np.array(choices, dtype=float)[order] + self.problem.space.lower
        fresh = self._fresh(rows, list(self._pending.values()))
        hardly = self._success(fresh) < HARDLY  # those are the last to be looked at
        return fresh[np.argsort(hardly, kind="stable")][:POOL]

    def _from(self, near: Linearisation, place: int) -> tuple[FloatArray, list[IntArray]]:
        """The exchanges from one trial: made once for a table, for they take a tenth of a second."""
        known = self._made.get((near.budget, place))
        if known is None or known[0] is not near.changes.table:
            choice = (self.archive.codes[place] - self.problem.space.lower).astype(np.int64)
            known = near.changes.table, near.changes.exchanges(choice, near.budget)
            self._made[near.budget, place] = known
        return known[1]

    def _promise(self, beliefs: Beliefs, rows: FloatArray, best: int) -> FloatArray:
        """How far each of rows [k, d] is expected to be below the best, [k], where it can be evaluated."""
        surrogate = beliefs.surrogates[self.problem.objectives[self._loss].name]
        mean, covariance = surrogate.posterior(np.vstack([self.archive.codes[best], rows]))
        deviations = np.sqrt(np.maximum(np.diag(covariance)[1:], 0.0))
        return expected_improvement(mean[1:], deviations, float(mean[0])) * self._success(rows)
