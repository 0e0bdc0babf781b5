"""The options of a discrete space's decisions, each with a place in one long list, as additive surrogates see them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt.space import Space

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


MOST_OPTIONS = 64
"""Options of a decision up to which each is told apart."""


def listable(space: Space) -> bool:
    """Whether every decision has options, few enough for tables."""
    return bool(space.discrete.all()) and bool((space.upper - space.lower).max() < MOST_OPTIONS)


class Options:
    """The options of the decisions of a discrete space, each with a place in one long list.

    Attributes:
        counts: How many each decision has, [d].
        starts: Where each decision's options begin in the list, [d].
        total: The length of the list, t.
        level: The level of each place, [t].
        owner: The decision of each place, [t].
        trend: The trend of each place, [t]: decisions with equal variables share one for each level.
        trends: How many trends there are, k.
    """

    def __init__(self, space: Space) -> None:
        self._lower = space.lower
        self.counts: IntArray = (space.upper - space.lower + 1).astype(np.int64)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.total = int(self.counts.sum())
        self.owner: IntArray = np.repeat(np.arange(len(self.counts)), self.counts)
        self.level: IntArray = np.arange(self.total) - self.starts[self.owner]
        kinds: dict[tuple[str, int], int] = {}
        names = [repr(variable) for variable in space.values()]
        places = zip(self.owner.tolist(), self.level.tolist(), strict=True)
        self.trend: IntArray = np.array([kinds.setdefault((names[i], b), len(kinds)) for i, b in places])
        self.trends = len(kinds)

    def places(self, codes: FloatArray) -> IntArray:
        """Where the options of candidates [n, d] are in the list, [n, d]."""
        return (codes - self._lower).astype(np.int64) + self.starts

    def shares(self, codes: FloatArray) -> FloatArray:
        """The levels of candidates [n, d] as shares of their range, [n, d]."""
        return (codes - self._lower) / np.maximum(self.counts - 1, 1)

    def tables(self, rows: FloatArray) -> FloatArray:
        """Rows [n, t] as tables [n, d, options]; inf where a decision has fewer options."""
        found = np.full((len(rows), len(self.counts), int(self.counts.max())), np.inf)
        found[:, self.owner, self.level] = rows
        return found

    def listed(self, table: npt.ArrayLike) -> FloatArray:
        """A table [d, options] as a row [t]."""
        return np.asarray(table, dtype=float)[self.owner, self.level]
