"""What `Problem.known` gives, for many candidates at once: by tables where it adds up over the decisions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moopt.errors import ProblemError
from moopt.problem import Problem, known_values
from moopt.surrogates.options import listable

FloatArray = npt.NDArray[np.float64]

PROBES = 8
"""Random candidates that tables must give exactly before they are used."""


class Known:
    """The known objectives and constraints of candidates.

    Args:
        problem: What knows them.

    Attributes:
        names: The objectives and constraints that are known.
        tables: What each option of the discrete decisions adds to each of them, [names, decisions, options], inf beyond
            a decision's options; None where they do not add up, or numbers count, too.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._space = problem, problem.space
        self._discrete = np.flatnonzero(problem.space.discrete)
        wanted = [o.name for o in problem.objectives if o.known] + [c.name for c in problem.constraints]
        told = filter(None, map(self._told, [problem.space.lower, *self._drawn()]))
        found = next(told, [o.name for o in problem.objectives if o.known])
        self.names = [name for name in dict.fromkeys(wanted) if name in found]
        self.tables: FloatArray | None = None
        if self.names and listable(problem.space):
            self._base, tables = self._tabled()
            self.tables = tables if self._exact(tables) else None

    def values(self, codes: FloatArray) -> dict[str, FloatArray]:
        """The known numbers [n] of candidates [n, d] by name; NaN for a candidate that the problem knows none of."""
        if self.tables is not None:
            rows = self._summed(self.tables, codes)
        else:
            rows = self._one_by_one(codes)
        return dict(zip(self.names, rows, strict=True))

    def _one_by_one(self, codes: FloatArray) -> FloatArray:
        """The known numbers [names, n] of candidates [n, d]."""
        return np.array([self._of(row) for row in codes]).reshape(len(codes), len(self.names)).T

    def _of(self, row: FloatArray) -> list[float]:
        known = self._told(row) or {}
        return [known.get(name, np.nan) for name in self.names]

    def _told(self, row: FloatArray) -> Mapping[str, float] | None:
        """What is known of a candidate [d]; None where that breaks the contract: its evaluation will say so."""
        try:
            return known_values(self._problem, self._space.decode(row))
        except ProblemError:
            return None

    def _drawn(self) -> FloatArray:
        rng = np.random.default_rng(0)
        return np.array([self._space.encode(self._space.sample(rng)) for _ in range(PROBES)])

    def _tabled(self) -> tuple[FloatArray, FloatArray]:
        """The numbers [names] of the lowest candidate, and what each option adds to them."""
        lower, counts = self._space.lower, (self._space.upper - self._space.lower + 1)[self._discrete].astype(int)
        base = np.array(self._of(lower))
        tables = np.full((len(self.names), len(counts), int(counts.max())), np.inf)
        for i, count in enumerate(counts):
            for option in range(count):
                row = lower.copy()
                row[self._discrete[i]] += option
                tables[:, i, option] = np.array(self._of(row)) - base
        return base, tables

    def _exact(self, tables: FloatArray) -> bool:
        codes = self._drawn()
        exact = np.allclose(self._summed(tables, codes), self._one_by_one(codes), rtol=1e-9, atol=0)
        return exact and not np.isnan(tables).any()

    def _summed(self, tables: FloatArray, codes: FloatArray) -> FloatArray:
        options = np.rint((codes - self._space.lower)[:, self._discrete]).astype(np.int64)
        found: FloatArray = self._base[:, None] + tables[:, np.arange(options.shape[1]), options].sum(axis=2)
        return found
