"""Choices of options relaxed to probabilities, whose expected cost is a budget wherever they are moved (RCO).

Decisions are independent: p = softmax(logits), row by row. Logits that would cost something else are shifted along the
costs, in which the expected cost is monotone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from moopt.budgets import Knapsack
from moopt.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

HALVINGS = 100
"""Of the interval in which a price is looked for."""


class Relaxation:
    """Probabilities of options whose expected cost is a budget.

    Args:
        costs: The cost of each option, [decisions, options], whole numbers; -1 where there is none.
        budget: What they are to cost, strictly between the least and the most.
        logits: Where to begin, [decisions, options]: what is likely at the start, but for the budget.

    Raises:
        BudgetError: the budget is not between the least and the most, which it says.
    """

    def __init__(self, costs: IntArray, budget: int, logits: FloatArray) -> None:
        bounds = Knapsack(np.zeros(costs.shape), costs)
        if not bounds.least < budget < bounds.most:
            raise BudgetError(
                f"Got a budget of {budget}; expected one between {bounds.least}, the least that a configuration costs, "
                f"and {bounds.most}, the most."
            )
        self.budget, self._table = budget, costs
        self._possible = costs >= 0
        self._costs = np.where(self._possible, costs, 0).astype(float)
        self.move(logits)

    @property
    def probabilities(self) -> FloatArray:
        """The probability of each option, [decisions, options]."""
        return self._softmax(self.logits)

    @property
    def cost(self) -> float:
        """The expected cost."""
        return float((self.probabilities * self._costs).sum())

    def move(self, logits: FloatArray) -> None:
        """Go to logits [decisions, options], shifted along the costs until the expected cost is the budget."""
        logits = np.where(self._possible, logits, 0.0)
        direction = self._costs / self._costs.max()

        def excess(shift: float) -> float:
            return float((self._softmax(logits + shift * direction) * self._costs).sum()) - self.budget

        low, high = -1.0, 1.0
        while excess(low) > 0:
            low *= 2
        while excess(high) < 0:
            high *= 2
        moved = logits + float(brentq(excess, low, high, xtol=1e-14)) * direction
        self.logits: FloatArray = moved - moved.mean(axis=1, keepdims=True)

    def draw(self, rng: np.random.Generator) -> IntArray:
        """A choice [decisions] within the budget: the likeliest under Gumbel noise."""
        scores = np.where(self._possible, self.logits + rng.gumbel(size=self.logits.shape), -np.inf)
        losses = np.where(self._possible, scores.max(axis=1, keepdims=True) - scores, 0.0)
        return Knapsack(losses, self._table).at(self.budget)

    def _softmax(self, logits: FloatArray) -> FloatArray:
        shifted = np.where(self._possible, logits, -np.inf)
        powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        found: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return found


def regret(losses: FloatArray, costs: IntArray, budget: int) -> float:
    """What a decision's second-best option loses, the median: above 0; 1 where all options are equally good.

    Losses are counted with a price on costs at which the best options together cost about the budget.

    Args:
        losses: Of each option, [decisions, options].
        costs: Of each option, whole numbers; -1 where there is none.
        budget: A cost between the least and the most.
    """
    rows, paid = np.arange(len(costs)), np.where(costs >= 0, costs, 0)
    losses = np.where(costs >= 0, losses, np.inf)
    low, high = 0.0, 2 * float(np.ptp(losses[costs >= 0]))  # at that price for one unit, everyone takes the cheapest
    if not high:
        return 1.0
    for _ in range(HALVINGS):
        price = (low + high) / 2
        dear = paid[rows, (losses + price * paid).argmin(axis=1)].sum() > budget
        low, high = (price, high) if dear else (low, price)
    best = np.sort(losses + high * paid, axis=1)[:, :2]
    regrets = best[np.isfinite(best).all(axis=1)] @ [-1.0, 1.0]
    return float(np.median(regrets)) or float(regrets.mean()) or 1.0
