"""Quadratic models of measured numbers, behind a link that keeps them in their range. Numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError
from scipy.optimize import least_squares

from moopt.errors import SurrogateError

FloatArray = npt.NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]

EDGE = 1e-3
"""How near to the ends of its range a value counts as at most, where a link would make it infinite."""
LARGEST = 1e100
"""The size of values that can be modelled."""
LEAST_LEFT = 0.05
"""What a value is taken to have of itself at least, where hardly any other says what it is."""
SMALL = 1e-3
"""The weight of what pulls coefficients to zero, beside errors of a thousandth of the values' spread."""


class _Function(NamedTuple):
    forward: Callable[[FloatArray], FloatArray]
    inverse: Callable[[FloatArray], FloatArray]
    slope: Callable[[FloatArray], FloatArray]


def _sigmoid(z: FloatArray) -> FloatArray:
    found: FloatArray = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
    return found


LINKS: dict[Link, _Function] = {
    "identity": _Function(lambda z: z, lambda y: y, np.ones_like),
    "sigmoid": _Function(
        _sigmoid, lambda y: np.log(np.clip(y, EDGE, 1 - EDGE) / (1 - np.clip(y, EDGE, 1 - EDGE))),
        lambda z: _sigmoid(z) * (1 - _sigmoid(z)),
    ),
    "softplus": _Function(
        lambda z: np.logaddexp(0, z), lambda y: y + np.log(-np.expm1(-np.maximum(y, 1e-12))), _sigmoid
    ),
}  # fmt: skip


def links(values: FloatArray) -> tuple[Link, ...]:
    """What may be behind such values [n]: "identity", "softplus" above 0, and "sigmoid" from 0 to 1."""
    positive: tuple[Link, ...] = ("identity", "softplus") if (values > 0).all() else ("identity",)
    return (*positive, "sigmoid") if ((values >= 0) & (values <= 1)).all() else positive


def fit(points: FloatArray, values: FloatArray) -> Quadratic:
    """The quadratic behind the link that predicts each value best from all others.

    Args:
        points: Where it was measured, [n, d], each coordinate about from 0 to 1.
        values: What was measured there, [n].

    Raises:
        SurrogateError: no quadratic fits; says why.
    """
    if not np.abs(values).max(initial=0.0) < LARGEST:
        raise SurrogateError(f"Values of {np.abs(values).max():.3g} are too large for a quadratic.")
    try:
        return min((Quadratic(points, values, link) for link in links(values)), key=lambda model: model.error)
    except (ValueError, LinAlgError) as error:
        raise SurrogateError(f"No quadratic fits {len(values)} values: {error}") from error


def terms(d: int) -> int:
    """How many coefficients a quadratic of d variables has: (d + 1)(d + 2) / 2."""
    return (d + 1) * (d + 2) // 2


class Quadratic:
    """act(e + b'x + x'Ax / 2), fitted by least squares: through the inverse link first, then refined on the values.

    Args:
        points: Where it was measured, [n, d], each coordinate about from 0 to 1.
        values: What was measured there, [n].
        link: act.

    Attributes:
        error: The root of the mean squared error of each value, predicted from all others, linearised.
    """

    def __init__(self, points: FloatArray, values: FloatArray, link: Link = "identity") -> None:
        self.link: Link = link
        self._act = LINKS[link]
        basis, spread = _basis(points), float(np.std(values)) or 1.0
        penalty = SMALL * np.eye(basis.shape[1])
        linear = np.linalg.lstsq(
            np.vstack([basis, penalty]), np.append(self._act.inverse(values), np.zeros(len(penalty))), rcond=None
        )[0]

        def residuals(c: FloatArray) -> FloatArray:
            return np.append((self._act.forward(basis @ c) - values) / spread, SMALL * c)

        def slopes(c: FloatArray) -> FloatArray:
            return np.vstack([self._act.slope(basis @ c)[:, None] * basis / spread, penalty])

        found = linear
        if self.link != "identity":
            found = least_squares(residuals, linear, slopes, method="lm" if len(values) else "trf", max_nfev=200).x
        self.coefficients: FloatArray = found if np.isfinite(found).all() else linear
        precision = slopes(self.coefficients)
        free = max(len(values) - basis.shape[1], 1)
        error = float((residuals(self.coefficients)[: len(values)] ** 2).sum()) / free
        inverse = np.linalg.pinv(precision.T @ precision)
        self._covariance = inverse * error
        leverage = np.einsum("ij,jk,ik->i", precision, inverse, precision)[: len(values)]
        left_out = residuals(self.coefficients)[: len(values)] / np.maximum(1 - leverage, LEAST_LEFT)
        self.error = float(np.sqrt(np.mean(left_out**2))) if len(values) else 0.0

    def mean(self, points: FloatArray) -> FloatArray:
        """The model at points [n, d], [n]."""
        return self._act.forward(_basis(points) @ self.coefficients)

    def deviations(self, points: FloatArray) -> FloatArray:
        """The standard deviations of the model at points [n, d], linearised, [n]: how far it might be off there."""
        basis = _basis(points)
        slopes = self._act.slope(basis @ self.coefficients)[:, None] * basis
        found: FloatArray = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", slopes, self._covariance, slopes), 0.0))
        return found


def leverage(points: FloatArray, known: FloatArray) -> FloatArray:
    """How little known points [k, d] tell of a quadratic at others [n, d]: its variance there for errors of 1, [n]."""
    basis = _basis(known)
    inverse = np.linalg.inv(basis.T @ basis + SMALL**2 * np.eye(basis.shape[1]))
    found: FloatArray = np.einsum("ij,jk,ik->i", _basis(points), inverse, _basis(points))
    return found


def determination(predicted: FloatArray, measured: FloatArray) -> float:
    """R^2: the share of the variance of measured values [n] that predictions [n] account for; NaN if there is none."""
    spread = float(((measured - measured.mean()) ** 2).sum()) if len(measured) else 0.0
    return 1 - float(((measured - predicted) ** 2).sum()) / spread if spread > 0 else float("nan")


def _basis(points: FloatArray) -> FloatArray:
    """1, every coordinate, and every product of two, for points [n, d]: [n, terms(d)]."""
    n, d = points.shape
    first, second = np.triu_indices(d)
    return np.hstack([np.ones((n, 1)), points, points[:, first] * points[:, second]])
