"""Choices of options relaxed to probabilities, whose expected cost is a budget at every step (RCO).

Decisions are independent: p = softmax(logits), row by row. The logits move along the surface on which the expected cost
is the budget: gradients lose what points away from it, and what curvature leaves over is taken back by a shift of the
logits along the costs, in which the expected cost is monotone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from moopt.budgets import Knapsack
from moopt.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FIRST, SECOND, TINY = 0.9, 0.95, 1e-8
"""Adam's decay rates, and what keeps it from dividing by nothing.

Gradients grow as the temperature falls; what is remembered of squares for a thousand steps (0.999) would come too late.
"""


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
        self._first = self._second = np.zeros(costs.shape)
        self._steps = 0
        self.logits = self._retracted(np.where(self._possible, logits, 0.0))

    @property
    def probabilities(self) -> FloatArray:
        """The probability of each option, [decisions, options]."""
        return self.softmax(self.logits)

    @property
    def cost(self) -> float:
        """The expected cost."""
        return float((self.probabilities * self._costs).sum())

    def step(self, gradient: FloatArray, rate: float) -> None:
        """One step of Adam against a gradient of the loss in the logits, [decisions, options], within the budget."""
        self._steps += 1
        along = self._tangent(np.where(self._possible, gradient, 0.0))
        self._first = FIRST * self._first + (1 - FIRST) * along
        self._second = SECOND * self._second + (1 - SECOND) * along**2
        mean, square = self._first / (1 - FIRST**self._steps), self._second / (1 - SECOND**self._steps)
        self.logits = self._retracted(self.logits - rate * mean / (np.sqrt(square) + TINY))
        self._first = self._tangent(self._first)

    def noisy(self, rng: np.random.Generator) -> FloatArray:
        """The logits with Gumbel noise, [decisions, options]: their likeliest choice is a draw."""
        return self.logits + rng.gumbel(size=self.logits.shape)

    def likeliest(self, logits: FloatArray | None = None) -> IntArray:
        """The choice [decisions] within the budget whose logits, those of now for None, add up to most."""
        scores = np.where(self._possible, self.logits if logits is None else logits, -np.inf)
        losses = np.where(self._possible, scores.max(axis=1, keepdims=True) - scores, 0.0)
        return Knapsack(losses, self._table).at(self.budget)

    def softmax(self, logits: FloatArray) -> FloatArray:
        """The probabilities of logits, [decisions, options]; 0 where there is no option."""
        shifted = np.where(self._possible, logits, -np.inf)
        powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        found: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return found

    def _tangent(self, vector: FloatArray) -> FloatArray:
        """A vector without what points away from the surface of the budget."""
        p = self.probabilities
        normal = p * (self._costs - (p * self._costs).sum(axis=1, keepdims=True))
        length = float((normal * normal).sum())
        return vector if length == 0 else vector - float((vector * normal).sum()) / length * normal

    def _retracted(self, logits: FloatArray) -> FloatArray:
        """Logits shifted along the costs until the expected cost is the budget."""
        direction = self._costs / self._costs.max()

        def excess(shift: float) -> float:
            return float((self.softmax(logits + shift * direction) * self._costs).sum()) - self.budget

        low, high = -1.0, 1.0
        while excess(low) > 0:
            low *= 2
        while excess(high) < 0:
            high *= 2
        moved = logits + float(brentq(excess, low, high, xtol=1e-14)) * direction
        found: FloatArray = moved - moved.mean(axis=1, keepdims=True)
        return found
