"""The options of a space's discrete decisions, each with a place in one long list, as additive surrogates see them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt.space import Space

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


MOST_OPTIONS = 64
"""Options of a decision up to which each is told apart."""


def listable(space: Space) -> bool:
    """Whether some decisions are discrete, and all of those have few enough options for tables."""
    discrete = space.discrete
    return bool(discrete.any()) and bool((space.upper - space.lower)[discrete].max() < MOST_OPTIONS)


class Options:
    """The options of the discrete decisions of a space, each with a place in one long list.

    Attributes:
        decisions: Which variables they are, [d]; the others are numbers.
        counts: How many each decision has, [d].
        starts: Where each decision's options begin in the list, [d].
        total: The length of the list, t.
        level: The level of each place, [t].
        owner: The decision of each place, [t].
        trend: The trend of each place, [t]: decisions with equal variables share one for each level.
        trends: How many trends there are, k.
    """

    def __init__(self, space: Space) -> None:
        self.decisions: IntArray = np.flatnonzero(space.discrete)
        self._numbers: IntArray = np.flatnonzero(~space.discrete)
        self._least, self._span = space.lower[self._numbers], (space.upper - space.lower)[self._numbers]
        self._lower = space.lower[self.decisions]
        self.counts: IntArray = (space.upper - space.lower + 1)[self.decisions].astype(np.int64)
        self.starts: IntArray = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.total = int(self.counts.sum())
        self.owner: IntArray = np.repeat(np.arange(len(self.counts)), self.counts)
        self.level: IntArray = np.arange(self.total) - self.starts[self.owner]
        kinds: dict[tuple[str, int], int] = {}
        names = [repr(variable) for variable in space.values() if variable.discrete]
        places = zip(self.owner.tolist(), self.level.tolist(), strict=True)
        self.trend: IntArray = np.array([kinds.setdefault((names[i], b), len(kinds)) for i, b in places])
        self.trends = len(kinds)

    def places(self, codes: FloatArray) -> IntArray:
        """Where the options of candidates [n, v] are in the list, [n, d]."""
        return (codes[:, self.decisions] - self._lower).astype(np.int64) + self.starts

    def shares(self, codes: FloatArray) -> FloatArray:
        """The levels of candidates [n, v] as shares of their range, [n, d]."""
        return (codes[:, self.decisions] - self._lower) / np.maximum(self.counts - 1, 1)

    def numbers(self, codes: FloatArray) -> FloatArray:
        """The numbers of candidates [n, v] as shares of their range, [n, v - d]."""
        return (codes[:, self._numbers] - self._least) / self._span

    def tables(self, rows: FloatArray) -> FloatArray:
        """Rows [n, t] as tables [n, d, options]; inf where a decision has fewer options."""
        found = np.full((len(rows), len(self.counts), int(self.counts.max())), np.inf)
        found[:, self.owner, self.level] = rows
        return found

    def listed(self, table: npt.ArrayLike) -> FloatArray:
        """A table [d, options] as a row [t]."""
        return np.asarray(table, dtype=float)[self.owner, self.level]
