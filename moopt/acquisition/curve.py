"""What candidates would take off a curve of cost and loss, where all that lies between measured points is reachable.

Hundreds of decisions give a candidate for nearly every cost. On such a front a new point between two others adds
hypervolume without being any better than they are: a search by volume spends its evaluations on filling gaps. Here the
front is the straight line from point to point, and only what lies below it is an improvement.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class CurveImprovement:
    """The improvement over curves through fronts of two objectives, one of which is a known cost.

    Args:
        fronts: Values to be minimised, [s, n, 2]; one front for each of s draws, or [1, n, 2] for all. Dominated
            values, those beyond the reference and NaN may be among them.
        reference: The corner up to which area counts, [2].
        cost: Which of the two objectives is the cost.
    """

    def __init__(self, fronts: FloatArray, reference: FloatArray, cost: int) -> None:
        self._order = [cost, 1 - cost]
        self._most, self._worst = reference[self._order]
        self._curves = [_Curve(front, self._most, self._worst) for front in fronts[..., self._order]]

    def of(self, draws: FloatArray) -> FloatArray:
        """The area [s, n] that each draw [s, n, 2] of candidates takes off its curve."""
        curves = self._curves * len(draws) if len(self._curves) == 1 else self._curves
        ordered = draws[..., self._order]
        return np.array([curve.below(c, v) for curve, (c, v) in zip(curves, np.moveaxis(ordered, 2, 1), strict=True)])


class _Curve:
    """A falling line from point to point, level behind the last; before the first nothing is reached.

    Args:
        front: Costs and losses, [n, 2].
        most: The cost up to which area counts.
        worst: The loss up to which area counts.
    """

    def __init__(self, front: FloatArray, most: float, worst: float) -> None:
        points = front[(front < [most, worst]).all(axis=1)]
        points = points[np.lexsort((points[:, 1], points[:, 0]))]
        before = np.append(worst, np.minimum.accumulate(points[:, 1]))[:-1]
        points = points[points[:, 1] < before]
        if not len(points):
            points = np.array([[most, worst]])
        self._costs = np.append(points[:, 0], most)
        self._losses = np.append(points[:, 1], points[-1, 1])
        self._worst = worst
        steps = np.diff(self._costs)
        self._areas = np.append(0.0, np.cumsum(steps * (self._losses[:-1] + self._losses[1:]) / 2))
        self._slopes = np.append(np.diff(self._losses) / np.where(steps > 0, steps, 1.0), 0.0)

    def below(self, costs: FloatArray, losses: FloatArray) -> FloatArray:
        """The area [n] between the curve and each candidate's loss, from its cost on to where the curve is as low."""
        first, last = self._costs[0], self._costs[-1]
        begin = np.clip(costs, first, last)
        end = np.interp(-losses, -self._losses[:-1], self._costs[:-1], left=first, right=last)
        end = np.maximum(end, begin)
        shared = self._area(end) - self._area(begin) - losses * (end - begin)
        before = np.maximum(first - costs, 0.0) * np.maximum(self._worst - losses, 0.0)
        found: FloatArray = np.nan_to_num(np.maximum(shared, 0.0) + before, nan=0.0)
        return found

    def _area(self, costs: FloatArray) -> FloatArray:
        """The area under the curve from its first point to costs [n]."""
        k = np.clip(np.searchsorted(self._costs, costs, side="right") - 1, 0, len(self._costs) - 1)
        beyond = costs - self._costs[k]
        found: FloatArray = self._areas[k] + beyond * (self._losses[k] + beyond * self._slopes[k] / 2)
        return found
