"""Level switches: some decisions one option dearer, others one cheaper, so that a budget is kept (EvoPress)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MOST = 3
"""A draw makes from one switch up to this many, few more often: the lesser of two numbers that are drawn evenly."""


class Switches:
    """Draws variations of choices at a budget.

    Args:
        costs: The cost of each option, [decisions, options], whole numbers; -1 where there is none.
    """

    def __init__(self, costs: IntArray) -> None:
        dearest = np.iinfo(np.int64).max
        priced = np.where(costs < 0, dearest, costs)
        self._order = np.argsort(priced, axis=1, kind="stable")  # option of each level
        self._prices = np.take_along_axis(priced, self._order, axis=1)
        self._levels = np.argsort(self._order, axis=1)  # level of each option
        self._top = (costs >= 0).sum(axis=1) - 1
        self._rows = np.arange(len(costs))

    def draw(self, choice: IntArray, budget: int, rng: np.random.Generator) -> IntArray:
        """A variation of a choice [decisions] that costs at most the budget, if the choice does.

        A decision goes one level up, and where that costs more than there is room for, others go down: one whose step
        costs as much, if there is one, else any until it is paid for. The choice itself where nothing can.
        """
        levels = self._levels[self._rows, choice]
        fixed = np.zeros(len(levels), dtype=bool)
        for _ in range(int(rng.integers(1, MOST + 1, 2).min())):
            rising = np.flatnonzero((levels < self._top) & ~fixed)
            if not len(rising):
                break
            up = int(rng.choice(rising))
            price = int(self._prices[up, levels[up] + 1] - self._prices[up, levels[up]])
            room = budget - int(self._prices[self._rows, levels].sum())
            paying = self._paying(levels, fixed, up, price, room, rng)
            if paying is not None:
                levels[paying] -= 1
                levels[up] += 1
                fixed[[up, *paying]] = True
        found: IntArray = self._order[self._rows, levels]
        return found

    def _paying(
        self, levels: IntArray, fixed: npt.NDArray[np.bool_], up: int, price: int, room: int, rng: np.random.Generator
    ) -> list[int] | None:
        """The decisions whose steps down pay for a step up; None if they cannot."""
        if price <= room:
            return []
        falling = np.flatnonzero((levels > 0) & ~fixed)
        falling = rng.permutation(falling[falling != up])
        saved = self._prices[falling, levels[falling]] - self._prices[falling, levels[falling] - 1]
        if (same := np.flatnonzero(saved == price)).size:
            return [int(falling[same[0]])]
        enough = np.flatnonzero(np.cumsum(saved) >= price - room)
        return falling[: enough[0] + 1].tolist() if enough.size else None
