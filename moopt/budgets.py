"""Exact allocation within one integer budget on additive tables, for all budgets at once. Knows no models."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from moopt.errors import BudgetError
from moopt.programmes import Programme, checked, whole_budget

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LARGEST_PROGRAMME = 200_000_000
"""Cells (decisions x budget units) up to which dynamic programming is used; above it HiGHS solves each budget."""


class Knapsack:
    """The multiple-choice knapsack: one option a decision, least total loss, total cost within a budget.

    Costs are integers, so a budget is met exactly or the nearest feasible amount below it, never above. One pass of
    dynamic programming (after dividing the costs by their common factor) answers every budget.

    Args:
        table: The loss of each option, [decisions, options]; inf where there is none.
        costs: The cost of each option, [decisions, options]; -1 where there is none.
    """

    def __init__(self, table: npt.ArrayLike, costs: npt.ArrayLike) -> None:
        self.table: FloatArray
        self.costs: IntArray
        self.table, self.costs = checked(table, costs)
        if not np.isfinite(self.table).any(axis=1).all():
            raise BudgetError("A decision has no option with a finite loss.")
        possible = np.isfinite(self.table)
        self._floor: IntArray = np.where(possible, self.costs, np.iinfo(np.int64).max).min(axis=1)
        extra = np.where(possible, self.costs - self._floor[:, None], 0)
        self._unit = max(int(np.gcd.reduce(extra, axis=None)), 1)
        self._extra: IntArray = extra // self._unit
        self.least = int(self._floor.sum())
        self.most = self.least + int(extra.max(axis=1).sum())

    def at(self, budget: float) -> IntArray:
        """The option of each decision, [decisions], that loses least within `budget`.

        Raises:
            BudgetError: even the cheapest options cost more, or it is no finite number.
        """
        within = whole_budget(budget)
        if within < self.least:
            raise BudgetError(f"Got a budget of {budget}; the cheapest configuration costs {self.least}.")
        if not self._is_tabled:
            return Programme(self.table, {"cost": self.costs}).at({"cost": within})
        picks, _ = self._pass
        room = (min(within, self.most) - self.least) // self._unit
        choice = np.empty(len(self.table), dtype=np.int64)
        for i in range(len(self.table) - 1, -1, -1):
            choice[i] = picks[i, room]
            room -= self._extra[i, choice[i]]
        return choice

    def cost(self, choice: npt.ArrayLike) -> int:
        """What a choice [decisions] costs."""
        return int(np.take_along_axis(self.costs, np.asarray(choice)[:, None], axis=1).sum())

    def front(self) -> tuple[IntArray, FloatArray]:
        """The whole front of (cost, loss): each cost at which less is lost than at any lower one, and that loss.

        `at` gives the configuration of each.

        Returns:
            Costs [n], rising, and losses [n], falling.

        Raises:
            BudgetError: costs too fine for dynamic programming.
        """
        if not self._is_tabled:
            raise BudgetError(
                f"Got costs of {(self.most - self.least) // self._unit:,} units for {len(self.table)} decisions, too "
                "fine for a table of the whole front. Round the costs up to coarser units, or ask for single budgets."
            )
        _, best = self._pass
        units = np.flatnonzero(np.diff(best, prepend=np.inf) < 0)
        return self.least + units * self._unit, best[units]

    @property
    def _is_tabled(self) -> bool:
        """Whether dynamic programming is used."""
        return len(self.table) * (self.most - self.least) // self._unit <= LARGEST_PROGRAMME

    @cached_property
    def _pass(self) -> tuple[IntArray | npt.NDArray[np.uint8], FloatArray]:
        """The one pass of dynamic programming.

        Returns:
            The best option of decision i when i and those before it may use u units, [decisions, units + 1], and the
            least loss of all decisions within u units, [units + 1].
        """
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
        return picks, best
