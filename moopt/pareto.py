"""Dominance, fronts, hypervolume, reference point, knee: thin over moocore.

Values are arrays [n, m], every objective to be minimised; `minimised` turns a problem's values into that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
import numpy.typing as npt

from moopt.errors import NoFeasibleTrial
from moopt.problem import Objective

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def minimised(values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> FloatArray:
    """Values by name -> [n, m], signs turned so that less is better."""
    rows = [[v[o.name] * o.sign for o in objectives] for v in values]
    return np.array(rows, dtype=float).reshape(len(rows), len(objectives))


def nondominated(values: npt.ArrayLike) -> BoolArray:
    """Which rows of [n, m] no other row dominates; of equal rows the first counts. Shape [n]."""
    points = np.asarray(values, dtype=float)
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points), dtype=bool)


def ranks(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Non-domination ranks of [n, m], 0 for the front. Shape [n]."""
    points = np.asarray(values, dtype=float)
    return np.asarray(moocore.pareto_rank(points), dtype=np.int64) if len(points) else np.zeros(0, dtype=np.int64)


def crowding(values: npt.ArrayLike) -> FloatArray:
    """Crowding distances within one front [n, m]; infinite at its ends (Deb et al. 2002). Shape [n]."""
    points = np.asarray(values, dtype=float)
    n, m = points.shape
    distance = np.zeros(n)
    if n == 0:
        return distance
    for j in range(m):
        order = np.argsort(points[:, j], kind="stable")
        column = points[order, j]
        distance[order[[0, -1]]] = np.inf
        if (span := column[-1] - column[0]) > 0 and n > 2:
            distance[order[1:-1]] += (column[2:] - column[:-2]) / span
    return distance


def hypervolume(values: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The volume that [n, m] dominates up to the reference point [m]; points beyond it add nothing."""
    points, corner = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    inside = points[(points < corner).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def reference_point(values: npt.ArrayLike, declared: Sequence[float | None] | None = None) -> FloatArray:
    """The corner [m] that hypervolumes are measured to.

    What is declared stays; the rest is the worst value of the front plus a tenth of the front's range (the usual
    rule for a reference point that was not given).

    Raises:
        NoFeasibleTrial: there are no points.
    """
    points = _some(values)
    front = points[nondominated(points)]
    worst, best = front.max(axis=0), front.min(axis=0)
    span = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
    inferred: FloatArray = worst + 0.1 * span
    if declared is not None:
        inferred = np.array([i if d is None else d for i, d in zip(inferred, declared, strict=True)])
    return inferred


def scaled(values: npt.ArrayLike, within: npt.ArrayLike) -> FloatArray:
    """Values [n, m] on a scale on which `within` [k, m] goes from 0 to 1 in each objective; 0 where it is constant."""
    points, bounds = np.asarray(values, dtype=float), np.asarray(within, dtype=float)
    low, span = bounds.min(axis=0), np.ptp(bounds, axis=0)
    found: FloatArray = np.where(span > 0, (points - low) / np.where(span > 0, span, 1.0), 0.0)
    return found


def chebyshev(values: npt.ArrayLike, weights: npt.ArrayLike, rho: float = 0.05) -> FloatArray:
    """The augmented Chebyshev values [n] of [n, m] scaled objectives: how far each is from the ideal point 0.

    max_j w_j v_j + rho sum_j w_j v_j for weights [m]; the least is non-dominated (Knowles 2006, equation 2).
    """
    weighted = np.asarray(values, dtype=float) * np.asarray(weights, dtype=float)
    found: FloatArray = weighted.max(axis=-1) + rho * weighted.sum(axis=-1)
    return found


def knee(values: npt.ArrayLike) -> int:
    """The index of the knee: the point of [n, m] farthest below the plane through the front's extremes.

    Objectives are scaled to [0, 1] over the front; the distance is that to the hyperplane sum = 1 (Das 1999, on
    scaled objectives). With a single point that point.

    Raises:
        NoFeasibleTrial: there are no points.
    """
    points = _some(values)
    index = np.flatnonzero(nondominated(points))
    front = points[index]
    return int(index[np.argmin(scaled(front, front).sum(axis=1))])


def _some(values: npt.ArrayLike) -> FloatArray:
    points = np.asarray(values, dtype=float)
    if points.size == 0:
        raise NoFeasibleTrial(f"Got no points, of shape {points.shape}; expected at least one row of [n, m].")
    return points
