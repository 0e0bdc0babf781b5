"""From good candidates to better ones, along the slope of what they promise. For numbers; levels stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from moopt.space import Space

FloatArray = npt.NDArray[np.float64]

STEP = 1e-4
"""How far apart differences are taken, as a share of a number's range."""
ITERATIONS = 25
LEAST = 1e-300
"""What a promise counts as at least, so that it has a logarithm."""


def climbed(score: Callable[[FloatArray], FloatArray], rows: FloatArray, space: Space) -> FloatArray:
    """Candidates [n, d] after some steps of L-BFGS-B on the logarithm of their score.

    Args:
        score: Of candidates [k, d], [k], without chance and not negative.
        rows: Where to begin, [n, d].
        space: Whose candidates.
    """
    free = np.flatnonzero(~space.discrete)
    lower, span = space.lower[free], (space.upper - space.lower)[free]
    apart = STEP * np.vstack([np.zeros(len(free)), np.eye(len(free)), -np.eye(len(free))])

    def placed(row: FloatArray, units: FloatArray) -> FloatArray:
        found = np.repeat(row[None], len(units), axis=0)
        found[:, free] = lower + np.clip(units, 0.0, 1.0) * span
        return found

    def loss(units: FloatArray, row: FloatArray) -> tuple[float, FloatArray]:
        logs = np.log(np.maximum(score(placed(row, units + apart)), LEAST))
        up, down = logs[1 : len(free) + 1], logs[len(free) + 1 :]
        return -float(logs[0]), (down - up) / (2 * STEP)

    found = []
    for row in rows:
        units = (row[free] - lower) / span
        best = minimize(
            loss, units, (row,), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(free),
            options={"maxiter": ITERATIONS},
        )  # fmt: skip
        found.append(placed(row, best.x[None])[0])
    return np.array(found)
