"""The part of a front that weights point to: what is near the point that is best for them. Moves with the front."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moopt import pareto

FloatArray = npt.NDArray[np.float64]


class Region:
    """What is about as good as the best, for given weights.

    Objectives are scaled so that each goes from 0 to 1 over the present front; the best is the point of the front with
    the least weighted augmented Chebyshev distance from the ideal point (Knowles 2006, equation 2).

    Args:
        weights: How much each objective counts, [m], none negative and one at least above 0.
        width: How much farther than the best may be from the ideal point, as a share of the front's range in the
            objective that counts most.
    """

    def __init__(self, weights: npt.ArrayLike, width: float) -> None:
        given = np.asarray(weights, dtype=float)
        self._weights, self._width = given / given.max(), width

    def excess(self, values: FloatArray, front: FloatArray) -> FloatArray:
        """By how much values [..., m] lie outside the region around the best of a front [k, m], [...]; 0 within."""
        distances, best = (pareto.chebyshev(pareto.scaled(each, front), self._weights) for each in (values, front))
        found: FloatArray = np.maximum(distances - best.min() - self._width, 0.0)
        return found
