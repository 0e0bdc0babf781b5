"""Gradients around candidates that are drawn near the best choice at a budget, and averaged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt.algorithms.changes import Changes
from moopt.jobs import Failure, Outcome
from moopt.relaxation import Relaxation, regret

IntArray = npt.NDArray[np.int64]

SURE = 1e6
"""The logit of what is drawn for certain."""


class Linearisation:
    """What changes of one decision do near the best choice within a budget, learned in steps of some gradients.

    A gradient says what happens around one candidate; where decisions interact, that is not what happens around its
    neighbours. So those of a step are taken around candidates drawn within the budget: the likelier, the better by
    all that is known, and by a falling temperature the nearer.

    Args:
        costs: The cost of each option, [decisions, options], whole numbers; -1 where there is none.
        budget: What candidates may cost, strictly between the least and the most.
        samples: Gradients of a step.
        changes: What is known, which is added to.
    """

    def __init__(self, costs: IntArray, budget: int, samples: int, changes: Changes) -> None:
        self.budget, self.samples, self.changes, self.steps = budget, samples, changes, 0
        self._costs = costs
        self._asked: set[int] = set()
        self._found: dict[int, tuple[IntArray, Outcome]] = {}

    @property
    def under_way(self) -> bool:
        """Whether a step has begun and has not ended."""
        return bool(self._asked)

    @property
    def left(self) -> list[int]:
        """The samples of the step that were not asked for."""
        return [sample for sample in range(self.samples) if sample not in self._asked]

    def relaxation(self, temperature: float, at: IntArray | None = None) -> Relaxation:
        """The odds that the samples of the step are drawn by, whose expected cost is the budget.

        Args:
            temperature: At 1, decisions are drawn whose second-best option costs as much as the median's.
            at: The options of the decisions of which nothing is known; None: whatever is drawn.
        """
        logits = -self.changes.table / (temperature * regret(self.changes.table, self._costs, self.budget))
        if at is not None:
            unknown = ~self.changes.known
            logits[unknown, at[unknown]] = SURE
        return Relaxation(self._costs, self.budget, logits)

    def draw(self, sample: int, temperature: float, seed: int, at: IntArray | None = None) -> IntArray:
        """The choice [decisions] that a sample of the step is linearised around: the same whenever asked.

        Args:
            sample: Its number in the step.
            temperature: See `relaxation`.
            seed: Of the search; the steps and the samples have draws of their own.
            at: See `relaxation`.
        """
        rng = np.random.default_rng([seed, self.budget, self.steps, sample])
        return self.relaxation(temperature, at).draw(rng)

    def issued(self, sample: int) -> None:
        """The gradient of a sample was asked for."""
        self._asked.add(sample)

    def tell(self, sample: int, choice: IntArray, outcome: Outcome) -> bool:
        """This came of a sample's gradient around a choice; whether it was the last of the step, which then ends."""
        self._found[sample] = choice, outcome
        if len(self._found) < self.samples:
            return False
        for _, (around, found) in sorted(self._found.items(), key=lambda each: each[0]):
            if not isinstance(found, Failure):
                linear, curvature = (np.array(found.attributes[name]) for name in ("linear", "curvature"))
                self.changes.learn_around(around, linear, curvature)
        self._asked, self._found = set(), {}
        self.steps += 1
        return True
