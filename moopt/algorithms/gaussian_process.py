"""A small exact Gaussian process in numpy, for the cheap baseline. QNEHVI's are botorch's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import ndtr

FloatArray = npt.NDArray[np.float64]

ITERATIONS = 50
"""Of the fit, at most."""


class GaussianProcess:
    """Matern-5/2 with a length scale for each input, fitted by maximum a posteriori.

    The priors are those that botorch uses where nothing else is known: length scales that grow with the square root of
    the number of inputs (Hvarfner et al. 2024), and little noise.

    Args:
        inputs: [n, f], about in the unit cube.
        targets: [n], centred, of variance 1.

    Raises:
        numpy.linalg.LinAlgError: the covariance is not positive definite.
    """

    def __init__(self, inputs: FloatArray, targets: FloatArray) -> None:
        features = inputs.shape[1]
        self._centre = np.append(np.full(features, math.sqrt(2) + math.log(features) / 2), -4.0)
        self._width = np.append(np.full(features, math.sqrt(3)), 1.0)
        bounds = [(-5.0, 8.0)] * features + [(-13.0, 1.0)]
        fitted = minimize(
            self._loss, self._centre.clip(-5.0, 8.0), (inputs, targets), "L-BFGS-B", jac=True, bounds=bounds,
            options={"maxiter": ITERATIONS},
        )  # fmt: skip
        self._scales, self._noise = np.exp(fitted.x[:-1]), math.exp(fitted.x[-1])
        self._condition(inputs, targets)

    def believe(self, inputs: FloatArray) -> None:
        """Take for measured what is expected at inputs [p, f] (the "kriging believer" of Ginsbourger et al. 2010)."""
        if len(inputs):
            expected = self.predict(inputs)[0]
            self._condition(np.vstack([self._inputs, inputs]), np.append(self._targets, expected))

    def predict(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The mean and the standard deviation [q] at inputs [q, f], without noise."""
        across = _matern(inputs / self._scales, self._inputs / self._scales)[0]
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        return across @ self._weights, np.sqrt(np.maximum(1.0 - (explained**2).sum(axis=0), 1e-12))

    def improvement(self, inputs: FloatArray) -> FloatArray:
        """The expected improvement [q] at inputs [q, f] below the least target."""
        mean, deviation = self.predict(inputs)
        ahead = (self._targets.min() - mean) / deviation
        found: FloatArray = deviation * (np.exp(-(ahead**2) / 2) / math.sqrt(2 * math.pi) + ahead * ndtr(ahead))
        return found

    def _condition(self, inputs: FloatArray, targets: FloatArray) -> None:
        self._inputs, self._targets = inputs, targets
        covariance = _matern(inputs / self._scales, inputs / self._scales)[0]
        self._factor = cho_factor(covariance + self._noise * np.eye(len(inputs)), lower=True)
        self._weights: FloatArray = cho_solve(self._factor, targets)

    def _loss(self, logarithms: FloatArray, inputs: FloatArray, targets: FloatArray) -> tuple[float, FloatArray]:
        """The negative log posterior of the logarithms of length scales and noise [f + 1], and its gradient."""
        noise, scaled = math.exp(logarithms[-1]), inputs / np.exp(logarithms[:-1])
        kernel, slope = _matern(scaled, scaled)
        factor = cho_factor(kernel + noise * np.eye(len(inputs)), lower=True)
        weights = cho_solve(factor, targets)
        off = (logarithms - self._centre) / self._width
        loss = targets @ weights / 2 + np.log(np.diag(factor[0])).sum() + (off**2).sum() / 2
        pull = cho_solve(factor, np.eye(len(inputs))) - np.outer(weights, weights)
        by_distance = pull * slope
        by_scale = by_distance.sum(axis=1) @ scaled**2 - np.einsum("nf,nf->f", scaled, by_distance @ scaled)
        return float(loss), np.append(by_scale, noise * np.trace(pull) / 2) + off / self._width


def _matern(first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Covariances [a, b] of inputs [a, f] and [b, f], and minus twice their slope over the squared distance."""
    distance = math.sqrt(5) * cdist(first, second)
    decay = np.exp(-distance)
    return (1 + distance + distance**2 / 3) * decay, 5 / 3 * (1 + distance) * decay
