"""The contract of a surrogate, and the data it is fitted to. Numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky

from moopt.errors import SurrogateError

FloatArray = npt.NDArray[np.float64]

JITTERS = (1e-9, 1e-7, 1e-5, 1e-3)
"""What is added to a covariance's diagonal, relative to its mean, until it has a Cholesky factor."""


@dataclass(frozen=True)
class Data:
    """What was measured of one objective or constraint.

    Attributes:
        codes: The candidates, encoded by their space, [n, d].
        values: What came of them, less is better, [n].
        variances: The variances of the values' errors, [n]; NaN for one that was not measured, None if none was.
    """

    codes: FloatArray
    values: FloatArray
    variances: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, codes: FloatArray, values: FloatArray, variances: FloatArray) -> Data:
        """Data whose variances [n] may all be NaN: not measured."""
        return cls(codes, values, None if np.isnan(variances).all() else variances)

    @property
    def errors(self) -> FloatArray | None:
        """The variances [n]; what was not measured of them is taken to be like the others."""
        if self.variances is None:
            return None
        measured = self.variances[~np.isnan(self.variances)]
        return np.where(np.isnan(self.variances), measured.mean(), self.variances) if len(measured) else None

    @property
    def logs(self) -> FloatArray:
        """The logarithms of the values, [n].

        Raises:
            SurrogateError: one of them is not positive.
        """
        if not (self.values > 0).all():
            raise SurrogateError(f"A value is {self.values.min():.3g}; only positive ones have a logarithm.")
        return np.log(self.values)

    @property
    def log_slopes(self) -> FloatArray:
        """The logarithm of the derivative of the logarithm at each value, [n].

        Taken no closer to 0 than a hundredth of the values' spread, or one value near 0 would decide which scale
        predicts best.
        """
        found: FloatArray = -np.log(np.maximum(self.values, 0.01 * self.values.std()))
        return found


class Surrogate(ABC):
    """A Gaussian posterior of a latent number, and how the objective comes of it."""

    score: float
    """The mean log density that the fit gives each value from all others, higher is better: comparable between fits."""

    @abstractmethod
    def conditioned(self, data: Data) -> Surrogate:
        """The posterior given this data, with the settings that were fitted before."""

    @abstractmethod
    def posterior(self, codes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean [n] and covariance [n, n] of the latent number at candidates [n, d]."""

    @abstractmethod
    def latent(self, codes: FloatArray) -> FloatArray:
        """The mean of the latent number at candidates [n, d] alone, [n]: in a fraction of the time."""

    @abstractmethod
    def values(self, latent: FloatArray) -> FloatArray:
        """The objective where the latent number is this, of any shape."""

    def tables(self, n: int, rng: np.random.Generator) -> FloatArray | None:
        """Draws of what each option adds to the objective, [n, decisions, options]; None if nothing is additive."""
        return None

    def sampled(self, codes: FloatArray, normals: FloatArray) -> FloatArray:
        """Joint draws of the objective at candidates [n, d] from standard normal numbers [s, n]; shape [s, n]."""
        mean, covariance = self.posterior(codes)
        return self.values(mean + normals @ _root(covariance).T)

    def mean(self, codes: FloatArray) -> FloatArray:
        """The objective at the latent mean of candidates [n, d]: its median. Shape [n]."""
        return self.values(self.latent(codes))


def factor(covariance: FloatArray) -> FloatArray:
    """The lower Cholesky factor [n, n] of a covariance that may be singular.

    Raises:
        SurrogateError: it is not a covariance.
    """
    scale = float(np.mean(np.diag(covariance))) or 1.0
    for jitter in JITTERS:
        try:
            found: FloatArray = cholesky(covariance + jitter * scale * np.eye(len(covariance)), lower=True)
        except (LinAlgError, ValueError):
            continue
        return found
    raise SurrogateError("A posterior covariance is not positive definite.")


def _root(covariance: FloatArray) -> FloatArray:
    """A matrix [n, n] whose product with its transpose is a covariance; rounding may have made it indefinite."""
    try:
        return factor(covariance)
    except SurrogateError:
        values, vectors = np.linalg.eigh(covariance)
        found: FloatArray = vectors * np.sqrt(np.maximum(values, 0.0))
        return found


def left_out(factored: FloatArray, residuals: FloatArray) -> FloatArray:
    """The log density [n] of each residual given all others.

    Rasmussen and Williams (2006), equations 5.10 to 5.12.

    Args:
        factored: The lower Cholesky factor of the residuals' covariance, [n, n].
        residuals: Values minus their prior mean, [n].
    """
    inverse = np.linalg.inv(factored)
    precision = (inverse**2).sum(axis=0)
    errors = (inverse.T @ (inverse @ residuals)) / precision
    density: FloatArray = 0.5 * (np.log(precision) - precision * errors**2 - np.log(2 * np.pi))
    return density
