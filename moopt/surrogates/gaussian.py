"""The general surrogate: a Gaussian process on the encoded candidates, for any kind of variable.

Kernel, priors and standardisation are those of botorch's `SingleTaskGP` (a squared exponential with a lengthscale for
each feature, whose prior grows with their number: Hvarfner, Hellsten and Nardi 2024). Fitted here with analytic
gradients, because a search fits hundreds of small ones: see `studies/benchmarks/surrogates.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from moopt.errors import SurrogateError
from moopt.problem import HasFeatures, Problem
from moopt.space import Choice, Space
from moopt.surrogates.base import Data, FloatArray, Surrogate, factor, left_out

Features = Callable[[FloatArray], FloatArray]
"""Turns codes [n, d] into what a Gaussian process sees, [n, f]."""

LENGTH_SPREAD = np.sqrt(3.0)
"""The standard deviation of a log lengthscale; its mean is sqrt(2) + log(features) / 2. What is most probable is so by
the density of the lengthscale itself, as in botorch, which favours shorter ones than that of its logarithm."""
NOISE_MEAN, NOISE_SPREAD = -4.0, 1.0
"""Mean and standard deviation of the log variance of errors that were not measured."""
LEAST_NOISE = 1e-4
"""The least variance of errors, where values have the variance 1."""
LOGS = (-7.0, 8.0)
"""Bounds of log lengthscales."""
NOISY, LONGEST = 0.01, 0.4
"""From this share of measured errors in the variance on, lengthscales are at most so long, times the root of the number
of features: noise hides what bends little, and a search that takes it for flat never looks again."""


class Encoding:
    """Numbers and levels scaled to [0, 1]; one column for every value of a choice.

    Args:
        space: What is encoded.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._numbers: npt.NDArray[np.bool_] = np.array([not isinstance(v, Choice) for v in space.values()])
        self._choices = [(i, int(v.upper) + 1) for i, v in enumerate(space.values()) if isinstance(v, Choice)]

    def __call__(self, codes: FloatArray) -> FloatArray:
        """The features [n, f] of candidates [n, d]."""
        span = np.maximum(self._space.upper - self._space.lower, 1e-12)
        scaled = ((codes - self._space.lower) / span)[:, self._numbers]
        columns = [np.eye(count)[codes[:, i].astype(int)] for i, count in self._choices]
        return np.hstack([scaled, *columns])


def features(problem: Problem) -> Features:
    """What a Gaussian process sees of a problem's candidates: the problem's own features, else its encoding."""
    if not isinstance(problem, HasFeatures):
        return Encoding(problem.space)
    own, space = problem.features, problem.space
    return lambda codes: np.array([own(space.decode(row)) for row in codes])


class GaussianProcess(Surrogate):
    """A Gaussian process on standardised values.

    Args:
        data: What was measured.
        features: What the process sees of a candidate.

    Raises:
        SurrogateError: its hyperparameters cannot be fitted.
    """

    def __init__(self, data: Data, features: Features) -> None:
        self._features = features
        target, _ = self._transformed(data)
        self._centre, self._scale = float(target.mean()), float(target.std()) or 1.0
        self._load(data)
        self._fit()
        self._condition()
        residuals = self._target - self._mean
        self.score = float(np.mean(left_out(self._factored, residuals) + self._stretch(data)))

    def conditioned(self, data: Data) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._load(data)
        new._condition()
        return new

    def posterior(self, codes: FloatArray) -> tuple[FloatArray, FloatArray]:
        rows = self._features(codes) / self._lengths
        across = _kernel(rows, self._rows / self._lengths)
        explained = solve_triangular(self._factored, across.T, lower=True)
        return self._mean + across @ self._weights, _kernel(rows, rows) - explained.T @ explained

    def latent(self, codes: FloatArray) -> FloatArray:
        across = _kernel(self._features(codes) / self._lengths, self._rows / self._lengths)
        found: FloatArray = self._mean + across @ self._weights
        return found

    def values(self, latent: FloatArray) -> FloatArray:
        found: FloatArray = self._centre + self._scale * latent
        return found

    def deviations(self, codes: FloatArray) -> FloatArray:
        """The standard deviations [n] of what is believed of candidates [n, d], in the unit of what is modelled."""
        variances = np.diag(self.posterior(codes)[1])
        found: FloatArray = self._scale * np.sqrt(np.maximum(variances, 1e-12))
        return found

    def _transformed(self, data: Data) -> tuple[FloatArray, FloatArray | None]:
        """What is modelled, [n], and the variances of its errors, [n]."""
        return data.values, data.errors

    def _load(self, data: Data) -> None:
        target, variances = self._transformed(data)
        self._rows = self._features(data.codes)
        self._target: FloatArray = (target - self._centre) / self._scale
        self._errors = None if variances is None else variances / self._scale**2 + 1e-8

    def _fit(self) -> None:
        """The most probable lengthscales and noise, looked for from the mode and from the middle of their prior."""
        features = self._rows.shape[1]
        middle = np.append(np.full(features, np.sqrt(2.0) + 0.5 * np.log(features)), NOISE_MEAN)
        mode = middle - np.append(np.full(features, LENGTH_SPREAD**2), NOISE_SPREAD**2)
        noisy = self._errors is not None and self._errors.mean() > NOISY
        longest = float(np.log(LONGEST * np.sqrt(features))) if noisy else LOGS[1]
        bounds = [(LOGS[0], longest)] * features + [(float(np.log(LEAST_NOISE)), 0.0)]
        try:
            found = [
                minimize(self._loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
                for start in (mode, middle)
            ]
        except (LinAlgError, ValueError) as error:
            raise SurrogateError(f"A Gaussian process cannot be fitted: {error}") from error
        best = min(found, key=lambda result: float(result.fun)).x
        self._lengths: FloatArray = np.exp(best[:-1])
        self._noise = float(np.exp(best[-1]))

    def _condition(self) -> None:
        scaled = self._rows / self._lengths
        noise = self._noise if self._errors is None else self._errors
        self._factored = factor(_kernel(scaled, scaled) + np.eye(len(scaled)) * noise)
        self._mean = _middle(self._factored, self._target)
        self._weights: FloatArray = cho_solve((self._factored, True), self._target - self._mean)

    def _loss(self, logs: FloatArray) -> tuple[float, FloatArray]:
        """The negative log posterior density of log lengthscales and log noise [f + 1], and its gradient."""
        scaled = self._rows / np.exp(logs[:-1])
        kernel, noise = _kernel(scaled, scaled), float(np.exp(logs[-1]))
        covariance = kernel + np.diag(np.full(len(kernel), noise) if self._errors is None else self._errors)
        factored = cholesky(covariance, lower=True)
        residuals = self._target - _middle(factored, self._target)
        weights = cho_solve((factored, True), residuals)
        outer = np.outer(weights, weights) - cho_solve((factored, True), np.eye(len(kernel)))
        loss = 0.5 * residuals @ weights + np.log(np.diag(factored)).sum()
        shared = outer * kernel
        slopes = np.empty(len(logs))
        slopes[:-1] = -(scaled**2 * shared.sum(axis=1)[:, None]).sum(axis=0) + (scaled * (shared @ scaled)).sum(axis=0)
        slopes[-1] = -0.5 * noise * np.trace(outer) if self._errors is None else 0.0
        away = np.append(
            (logs[:-1] - np.sqrt(2.0) - 0.5 * np.log(len(logs) - 1)) / LENGTH_SPREAD,
            (logs[-1] - NOISE_MEAN) / NOISE_SPREAD,
        )
        spreads = np.append(np.full(len(logs) - 1, LENGTH_SPREAD), NOISE_SPREAD)
        return float(loss + (0.5 * away**2 + logs).sum()), slopes + away / spreads + 1.0

    def _stretch(self, data: Data) -> FloatArray | float:
        """The log derivative of the latent number by the objective at the data."""
        return -float(np.log(self._scale))


class LogGaussianProcess(GaussianProcess):
    """The same on the logarithm of a positive objective."""

    def values(self, latent: FloatArray) -> FloatArray:
        found: FloatArray = np.exp(np.minimum(super().values(latent), 700.0))
        return found

    def _transformed(self, data: Data) -> tuple[FloatArray, FloatArray | None]:
        logs, errors = data.logs, data.errors
        return logs, None if errors is None else errors / data.values**2

    def _stretch(self, data: Data) -> FloatArray:
        found: FloatArray = data.log_slopes - np.log(self._scale)
        return found


def _kernel(left: FloatArray, right: FloatArray) -> FloatArray:
    """The squared exponential of rows [n, f] and [k, f] in lengthscales, [n, k]."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    found: FloatArray = np.exp(-0.5 * np.maximum(squares, 0.0))
    return found


def _middle(factored: FloatArray, target: FloatArray) -> float:
    """The most probable constant mean of a target [n]."""
    ones = cho_solve((factored, True), np.ones(len(target)))
    return float(ones @ target / ones.sum())
