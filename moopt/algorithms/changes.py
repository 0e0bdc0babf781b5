"""What each option does to a loss, averaged over tables that tell it around different candidates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SIDES, EXCHANGES = 200, 200
"""Changes that are looked at for each side of an exchange of two decisions, and how many exchanges are told."""


class Changes:
    """An average of tables of what changes of one decision do to the loss, [decisions, options].

    Where errors of decisions are nearly independent, as quantization's are, leaving a candidate's option for another
    costs about what the other loses less what the candidate's own loses, whichever candidate that is (and the loss's
    slope there says more of its own option than of the other). So tables around different candidates, and one of
    sensitivities too, are samples of one table that is known up to a constant in each decision, and their noise goes
    down together.

    Args:
        costs: The cost of each option; -1 where there is none.
    """

    def __init__(self, costs: IntArray) -> None:
        self._costs, self._possible = costs, costs >= 0
        self._weights: FloatArray = np.zeros((len(costs), 1))
        self._sensitivities: FloatArray | None = None
        self.table: FloatArray = np.zeros(costs.shape)
        """The average, centred in each decision; 0 where nothing is known."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """The decisions of which anything is known, [decisions]."""
        return self._weights[:, 0] > 0

    def around(self, choice: IntArray) -> FloatArray:
        """What each change of a choice [decisions] does; only staying is possible where nothing is known."""
        rows = np.arange(len(choice))
        found = self.table - self.table[rows, choice][:, None]
        found[~self.known] = np.inf
        found[rows, choice] = 0.0
        return found

    def exchanges(self, choice: IntArray, budget: int) -> tuple[FloatArray, list[IntArray]]:
        """What is next best within a budget: choices that differ from one in a decision, or in two of which one pays.

        Returns:
            What each does to the loss by the average, least first, and the choices: some hundreds at most.
        """
        table, rows = self.around(choice), np.arange(len(choice))
        own = self._costs[rows, choice]
        changed, option = np.nonzero(
            self._possible & np.isfinite(table) & (np.arange(table.shape[1]) != choice[:, None])
        )
        gained, paid = table[changed, option], self._costs[changed, option] - own[changed]
        room = budget - int(own.sum())
        alone = np.flatnonzero(paid <= room)
        better = np.argsort(gained, kind="stable")[:SIDES]
        cheaper = np.flatnonzero(paid < 0)
        cheaper = cheaper[np.argsort(gained[cheaper] / -paid[cheaper], kind="stable")][:SIDES]
        fits = (paid[better][:, None] + paid[cheaper] <= room) & (changed[better][:, None] != changed[cheaper])
        first, second = np.nonzero(fits)
        pairs = np.unique(np.sort(np.column_stack([better[first], cheaper[second]]), axis=1), axis=0)
        every = [*alone[:, None].tolist(), *pairs.tolist()]
        change = np.concatenate([gained[alone], gained[pairs].sum(axis=1)])
        best = np.argsort(change, kind="stable")[:EXCHANGES]
        found = []
        for place in best:
            found.append(choice.copy())
            found[-1][changed[every[place]]] = option[every[place]]
        return change[best], found

    def begin(self, sensitivities: FloatArray, weight: float) -> None:
        """Average a table of sensitivities in, which is what an original loses by each option."""
        self._sensitivities = sensitivities
        self.learn(sensitivities, weight)

    def learn_around(self, choice: IntArray, linear: FloatArray, curvature: FloatArray) -> None:
        """Average in what was found around a choice [decisions].

        The curvature is averaged with what the sensitivities say of it, which come of more samples around another
        place: the errors of two options of one decision are nearly independent, so that the step from one to the other
        is curved by about the sum of what each costs from the original.
        """
        if self._sensitivities is not None:
            rows = np.arange(len(choice))
            expected = self._sensitivities + self._sensitivities[rows, choice][:, None]
            expected[rows, choice] = 0
            curvature = (curvature + expected) / 2
        self.learn(linear + curvature)

    def learn(self, table: FloatArray, weight: float = 1.0) -> None:
        """Average a table in; it tells nothing of a decision one of whose options it does not know."""
        known = (np.isfinite(table) | ~self._possible).all(axis=1, keepdims=True)
        told = np.where(self._possible & known, table, 0.0)
        told = told - told.sum(axis=1, keepdims=True) / self._possible.sum(axis=1, keepdims=True)
        self._weights = self._weights + weight * known
        self.table = self.table + weight * known / self._weights.clip(min=weight) * (told - self.table)
        self.table[~self._possible] = 0.0

    def weigh(self, most: float) -> None:
        """Count all that was averaged so far as no more than so much weight."""
        self._weights = self._weights.clip(max=most)
