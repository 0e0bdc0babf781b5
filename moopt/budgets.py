"""Exact allocation on additive tables: the least estimated loss within an integer budget. Knows no models."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from moopt.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LARGEST_PROGRAMME = 200_000_000
"""Cells (decisions x budget units) up to which dynamic programming is used; above it HiGHS solves each budget."""

TINY = float(np.finfo(float).tiny)


class Knapsack:
    """The multiple-choice knapsack: one option a decision, least total loss, total cost within a budget.

    Costs are integers, so a budget is met exactly or the nearest feasible amount below it, never above. One pass of
    dynamic programming (after dividing the costs by their common factor) answers every budget.

    Args:
        table: The loss of each option, [decisions, options]; inf where there is none.
        costs: The cost of each option, [decisions, options]; -1 where there is none.
    """

    def __init__(self, table: npt.ArrayLike, costs: npt.ArrayLike) -> None:
        self.table: FloatArray = np.array(table, dtype=float)
        self.costs: IntArray = np.array(costs, dtype=np.int64)
        if self.table.shape != self.costs.shape or self.table.ndim != 2:
            raise BudgetError(
                f"Got a table of shape {self.table.shape} and costs of shape {self.costs.shape}; "
                "expected both [decisions, options]."
            )
        self.table[self.costs < 0] = np.inf
        if np.isnan(self.table).any():
            raise BudgetError("The table has NaN in it; expected losses, or inf where there is no option.")
        if not np.isfinite(self.table).any(axis=1).all():
            raise BudgetError("A decision has no option with a finite loss.")
        possible = np.isfinite(self.table)
        self._floor: IntArray = np.where(possible, self.costs, np.iinfo(np.int64).max).min(axis=1)
        extra = np.where(possible, self.costs - self._floor[:, None], 0)
        self._unit = max(int(np.gcd.reduce(extra, axis=None)), 1)
        self._extra: IntArray = extra // self._unit
        self.least = int(self._floor.sum())
        self.most = self.least + int(extra.max(axis=1).sum())

    def at(self, budget: int) -> IntArray:
        """The option of each decision, [decisions], that loses least within `budget`.

        Raises:
            BudgetError: even the cheapest options cost more.
        """
        if budget < self.least:
            raise BudgetError(f"Got a budget of {budget}; the cheapest configuration costs {self.least}.")
        room = (min(int(budget), self.most) - self.least) // self._unit
        if len(self.table) * (self.most - self.least) // self._unit > LARGEST_PROGRAMME:
            return self._programme(room)
        choice = np.empty(len(self.table), dtype=np.int64)
        for i in range(len(self.table) - 1, -1, -1):
            choice[i] = self._picks[i, room]
            room -= self._extra[i, choice[i]]
        return choice

    def cost(self, choice: npt.ArrayLike) -> int:
        """What a choice [decisions] costs."""
        return int(np.take_along_axis(self.costs, np.asarray(choice)[:, None], axis=1).sum())

    @cached_property
    def _picks(self) -> IntArray | npt.NDArray[np.uint8]:
        """The best option of decision i when i and those before it may use u units, [decisions, units + 1]."""
        units = (self.most - self.least) // self._unit
        best = np.zeros(units + 1)
        picks = np.zeros((len(self.table), units + 1), dtype=np.uint8 if self.table.shape[1] <= 256 else np.int64)
        for i, (losses, extra) in enumerate(zip(self.table, self._extra, strict=True)):
            new = np.full(units + 1, np.inf)
            for j in np.flatnonzero(np.isfinite(losses)):
                candidate = np.full(units + 1, np.inf)
                candidate[extra[j] :] = best[: units + 1 - extra[j]] + losses[j]
                better = candidate < new
                new[better] = candidate[better]
                picks[i, better] = j
            best = new
        return picks

    def _programme(self, room: int) -> IntArray:
        """The same as an integer programme, for budgets too fine for dynamic programming.

        HiGHS works in floating point: losses and costs are scaled to 1, and a solution that is over the budget within
        its tolerance is solved again with less room.
        """
        rows, options = np.nonzero(np.isfinite(self.table))
        one_each = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))
        losses, extra = self.table[rows, options], self._extra[rows, options]
        loss_scale, cost_scale = max(float(np.abs(losses).max()), TINY), max(int(extra.max()), 1)
        limit = room
        while True:
            found = milp(
                losses / loss_scale,
                integrality=np.ones(len(rows)),
                bounds=Bounds(0, 1),
                constraints=[
                    LinearConstraint(one_each, 1, 1), LinearConstraint(extra / cost_scale, 0, limit / cost_scale)
                ],
                options={"mip_rel_gap": 0.0},
            )  # fmt: skip
            if found.x is None:
                raise BudgetError(f"HiGHS found no allocation: {found.message}")
            choice = np.empty(len(self.table), dtype=np.int64)
            taken = found.x > 0.5
            choice[rows[taken]] = options[taken]
            over = int(extra[taken].sum()) - room
            if over <= 0:
                return choice
            limit -= over
