"""Candidates brought to given costs: sizes along a front rarely meet, and what is better should replace a point.

A better candidate that is a little larger than a measured one leaves that one on the front. One of the same cost
does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt.budgets import Knapsack
from moopt.problem import HasCosts, Problem

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

KEPT = 0.5
"""What a change must be worth at least: this quantile of what single changes are worth."""


class Matches:
    """Brings candidates [n, d] to given costs.

    Args:
        problem: Whose costs; its space is discrete.
    """

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem, HasCosts)
        self._costs = np.asarray(problem.costs())
        self._lower = problem.space.lower
        self._measured = next(j for j, objective in enumerate(problem.objectives) if not objective.known)

    def of(self, tables: FloatArray, rows: FloatArray, like: FloatArray) -> FloatArray:
        """Candidates that cost as much as the nearest of others, and differ from rows in what is worth it: [n, d].

        Args:
            tables: What each option adds to each objective, [m, decisions, options].
            rows: Candidates [n, d].
            like: Candidates [k, d] whose costs count.
        """
        table = tables[self._measured]
        budgets = np.array(sorted({self._cost(options) for options in self._options(like)}))
        found = []
        for options in self._options(rows):
            budget = budgets[np.abs(budgets - self._cost(options)).argmin()]
            found.append(Knapsack(table + _leaving(table, options), self._costs).at(int(budget)))
        return np.array(found) + self._lower

    def _options(self, rows: FloatArray) -> IntArray:
        return np.rint(rows - self._lower).astype(np.int64)

    def _cost(self, options: IntArray) -> int:
        return int(np.take_along_axis(self._costs, options[:, None], axis=1).sum())


def _leaving(table: FloatArray, options: IntArray) -> FloatArray:
    """A penalty for every option but the present ones."""
    gaps = np.abs(table - np.take_along_axis(table, options[:, None], axis=1))
    gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
    penalty = np.full(table.shape, np.quantile(gaps, KEPT) if len(gaps) else 0.0)
    np.put_along_axis(penalty, options[:, None], 0.0, axis=1)
    return penalty
