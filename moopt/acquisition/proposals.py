"""Candidates worth a look, as rows of codes: optima of drawn tables, variations of the front, spread points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from moopt.problem import HasMoves, Problem
from moopt.space import Choice, Ordinal

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOVED = 0.1
"""The share of variations that the problem's own moves make, where it has some."""


class Proposals:
    """Makes candidates [n, d] in a problem's space.

    Args:
        problem: Whose space, and moves.
        relaxed: Whether levels are taken for numbers, which whoever takes a candidate has to round.
    """

    def __init__(self, problem: Problem, relaxed: bool = False) -> None:
        space = problem.space
        self._space = space
        self._discrete = np.zeros(len(space), dtype=bool) if relaxed else space.discrete
        self._moves = problem.moves if isinstance(problem, HasMoves) and not relaxed else None
        self._choice = np.array([isinstance(v, Choice) for v in space.values()]) & self._discrete
        self._ordinal = np.array([isinstance(v, Ordinal) for v in space.values()]) & self._discrete
        self._known = any(objective.known for objective in problem.objectives)
        self._span = space.upper - space.lower
        steps = [
            (i, code)
            for i, variable in enumerate(space.values())
            if self._discrete[i]
            for code in (range(int(variable.upper) + 1) if isinstance(variable, Choice) else (-1, 1))
        ]
        self._steps = np.array([i for i, _ in steps], dtype=int), np.array([code for _, code in steps], dtype=float)

    def spread(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Candidates over the whole space (scrambled Sobol points); with a known objective also over its range.

        Drawn uniformly, many levels average out to the middle of what is known, such as bytes; so levels are then drawn
        near one share of their range for each candidate.
        """
        dimensions = len(self._space)
        if dimensions <= qmc.Sobol.MAXDIM:
            unit = qmc.Sobol(dimensions, rng=rng).random_base2(int(np.ceil(np.log2(max(n, 2)))))[:n]
        else:
            unit = rng.random((n, dimensions))
        margin = np.where(self._discrete, 0.5, 0.0)
        rows = self._clipped(self._space.lower - margin + unit * (self._span + 2 * margin))
        if self._known and self._ordinal.any():
            shares = rng.permutation((np.arange(n) + rng.random()) / n)
            near = rng.binomial(self._span.astype(np.int64) * self._ordinal, shares[:, None])
            rows = np.where(self._ordinal, self._space.lower + near, rows)
        return rows

    def optima(self, tables: FloatArray, each: int, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """What minimises weighted sums of drawn tables [n, m, decisions, options]: n * each candidates.

        Tables speak of the discrete decisions; numbers are those of one of the parents [p, d], varied a little.

        The weights of two objectives are drawn so that a random step is worth as much in each: they cover whatever
        range of trade-offs the tables have.
        """
        n, m, decisions, options = tables.shape
        rows = np.zeros((n, each, decisions))
        if options == 1:  # nothing to choose
            return self._completed(rows.reshape(-1, decisions), parents, rng)
        steps = np.abs(np.diff(np.where(np.isfinite(tables), tables, np.nan), axis=3)).reshape(n, m, -1)
        which = rng.integers(steps.shape[2], size=(n, each, m))
        drawn = steps[np.arange(n)[:, None, None], np.arange(m), which]
        typical = np.nanmedian(steps, axis=2)[:, None]
        weights = 1 / np.maximum(np.where(drawn > 0, drawn, typical), 1e-300)
        for k in range(n):
            total = np.einsum("em,mdo->edo", weights[k], np.where(np.isfinite(tables[k]), tables[k], 0.0))
            rows[k] = np.where(np.isfinite(tables[k]).all(axis=0), total, np.inf).argmin(axis=2)
        return self._completed(rows.reshape(-1, decisions), parents, rng)

    def _completed(self, chosen: FloatArray, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Candidates of options [n, decisions], with the numbers of one of the parents, varied a little."""
        if chosen.shape[1] == len(self._space):
            return chosen + self._space.lower
        found = self.varied(parents, len(chosen), 0.1, rng)
        decided = self._space.discrete
        found[:, decided] = chosen + self._space.lower[decided]
        return found

    def approached(self, goals: FloatArray, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Parents [p, d] that take over some of what a goal [n, d] has: a trust region of 1 to d changes around each.

        A goal's parent is the one that differs least.
        """
        distance = (goals[:, None] != parents[None]).sum(axis=2)
        nearest = parents[distance.argmin(axis=1)]
        radius = np.exp(rng.random(len(goals)) * np.log(np.maximum(distance.min(axis=1), 1)))
        share = radius / np.maximum(distance.min(axis=1), 1)
        return np.where(rng.random(goals.shape) < share[:, None], goals, nearest)

    def varied(self, parents: FloatArray, n: int, scale: float, rng: np.random.Generator) -> FloatArray:
        """Variations of parents [p, d]: [n, d].

        Args:
            parents: What is varied.
            n: How many.
            scale: How far numbers move, as a share of their range, on average; levels move by one or by that.
            rng: The generator.
        """
        rows = parents[rng.integers(len(parents), size=n)]
        d = rows.shape[1]
        wanted = np.exp(rng.random(n) * np.log(max(d / 2, 2.0)))
        changed = rng.random(rows.shape) < (wanted / d)[:, None]
        changed[np.arange(n), rng.integers(d, size=n)] = True
        step = rng.standard_normal(rows.shape) * scale * self._span
        step = np.where(self._discrete, np.sign(step) * np.maximum(1.0, np.round(np.abs(step))), step)
        step = np.where(self._ordinal, np.sign(step), step)
        resampled = self._space.lower + np.floor(rng.random(rows.shape) * (self._span + 1))
        moved = np.where(self._choice, resampled, self._reflected(rows + step))
        found = self._clipped(np.where(changed, moved, rows))
        if self._moves is not None:
            for k in range(int(n * MOVED)):
                found[k] = self._space.encode(self._moves(self._space.decode(rows[k]), rng))
        return found

    def neighbours(self, row: FloatArray, most: int, rng: np.random.Generator) -> FloatArray:
        """Every candidate one step in one discrete variable away from a row [d], or `most` of them drawn."""
        places, codes = self._steps
        codes = np.where(self._choice[places], codes, row[places] + codes)
        allowed = (codes != row[places]) & (codes >= self._space.lower[places]) & (codes <= self._space.upper[places])
        places, codes = places[allowed], codes[allowed]
        rows = np.repeat(row[None], len(places), axis=0)
        rows[np.arange(len(rows)), places] = codes
        return rows if len(rows) <= most else rows[rng.permutation(len(rows))[:most]]

    def _reflected(self, rows: FloatArray) -> FloatArray:
        """Numbers beyond a bound, mirrored at it, so that the bounds are not where most variations end."""
        low, high = self._space.lower, self._space.upper
        return np.where(rows < low, 2 * low - rows, np.where(rows > high, 2 * high - rows, rows))

    def _clipped(self, rows: FloatArray) -> FloatArray:
        exact = np.where(self._discrete, np.floor(rows + 0.5), rows)
        found: FloatArray = np.clip(exact, self._space.lower, self._space.upper) + 0.0  # no negative zeros
        return found
