"""What a search believes of every objective and constraint: known ones exactly, measured ones by their surrogates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from moopt.acquisition.known import Known
from moopt.problem import Problem
from moopt.surrogates import Surrogate

FloatArray = npt.NDArray[np.float64]


class Beliefs:
    """Joint draws of everything that counts.

    Args:
        problem: Whose objectives and constraints.
        known: What needs no belief.
        surrogates: The others' by name, of values to be minimised.
        outside: By how much objectives [..., m], signs turned, lie outside the region that is searched, [...].
    """

    def __init__(
        self, problem: Problem, known: Known, surrogates: Mapping[str, Surrogate],
        outside: Callable[[FloatArray], FloatArray],
    ) -> None:  # fmt: skip
        self._objectives, self._constraints = problem.objectives, problem.constraints
        self._known, self.surrogates, self._outside = known, surrogates, outside

    def drawn(self, codes: FloatArray, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Objectives [s, n, m], signs turned, and what is exceeded [s, n, c + 1], of candidates [n, d].

        Exceeded are the constraints, and last the region, which what nothing is known of is not in.
        """
        exact = self._known.values(codes)
        shape = (draws, len(codes))
        found = {name: surrogate.sampled(codes, _normals(shape, rng)) for name, surrogate in self.surrogates.items()}
        signs = {o.name: o.sign for o in self._objectives}
        for name, values in exact.items():
            found[name] = np.broadcast_to(values * signs.get(name, 1.0), shape)
        objectives = np.stack([found[o.name] for o in self._objectives], axis=2)
        excess = [c.excess(found[c.name] * signs.get(c.name, 1.0)) for c in self._constraints]
        outside = np.where(np.isnan(objectives).any(axis=2), 1.0, self._outside(objectives))
        return objectives, np.stack([*excess, outside], axis=2)

    def spread(self, codes: FloatArray, normals: FloatArray) -> FloatArray:
        """Objectives [q, n, m], signs turned, of candidates [n, d] at so many deviations [q] from their means, each."""
        exact, columns = self._known.values(codes), []
        shape = (len(normals), len(codes))
        for objective in self._objectives:
            if objective.name in exact:
                columns.append(np.broadcast_to(exact[objective.name] * objective.sign, shape))
                continue
            surrogate = self.surrogates[objective.name]
            mean, covariance = surrogate.posterior(codes)
            deviations = np.sqrt(np.maximum(np.diag(covariance), 0.0))
            columns.append(surrogate.values(mean + normals[:, None] * deviations))
        return np.stack(columns, axis=2)

    def expected(self, codes: FloatArray) -> FloatArray:
        """Objectives [n, m], signs turned, of candidates [n, d], where every surrogate is at its mean."""
        exact = self._known.values(codes)
        columns = [
            exact[o.name] * o.sign if o.name in exact else self.surrogates[o.name].mean(codes) for o in self._objectives
        ]
        return np.stack(columns, axis=1)

    def tables(self, n: int, rng: np.random.Generator) -> FloatArray | None:
        """Draws [n, m, decisions, options] of what each option adds to each objective; None unless all add up."""
        found = []
        for objective in self._objectives:
            if objective.name in self.surrogates:
                drawn = self.surrogates[objective.name].tables(n, rng)
            else:
                drawn = self._exact(objective.name, objective.sign, n)
            if drawn is None:
                return None
            found.append(drawn)
        return np.stack(found, axis=1)

    def _exact(self, name: str, sign: float, n: int) -> FloatArray | None:
        if self._known.tables is None:
            return None
        table = self._known.tables[self._known.names.index(name)]
        return np.broadcast_to(np.where(np.isfinite(table), table * sign, np.inf), (n, *table.shape))


def _normals(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """Standard normal numbers, each followed by its mirror image, so that their mean is that of the posterior."""
    half = rng.standard_normal(((shape[0] + 1) // 2, shape[1]))
    return np.vstack([half, -half])[: shape[0]]
