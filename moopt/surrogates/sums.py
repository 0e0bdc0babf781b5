"""The additive surrogates: what is a sum of parts, what is the logarithm of one, and what adds up in any sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from moopt.surrogates.additive import AdditiveSurrogate
from moopt.surrogates.base import Data, FloatArray


class LogAdditive(AdditiveSurrogate):
    """Losses that add up: the objective is a sum of positive parts, exp(theta), times the exponential of a residual."""

    def values(self, latent: FloatArray) -> FloatArray:
        found: FloatArray = np.exp(np.minimum(latent, 700.0))
        return found

    def _start(self, data: Data) -> None:
        pass

    def _latent(self, data: Data) -> tuple[FloatArray, FloatArray]:
        logs = data.logs
        return logs, np.full(len(data), np.nan) if data.variances is None else data.variances / data.values**2

    def _known(self, row: FloatArray) -> FloatArray:
        least = 1e-9 * float(row[np.isfinite(row)].max(initial=0.0)) or 1e-12
        theta = np.log(np.maximum(np.where(np.isfinite(row), row, least), least))
        latent, _ = self._summed(theta[self._options.places(self._data.codes)])
        found: FloatArray = theta + np.median(self._targets - latent)
        return found

    def _added(self, theta: FloatArray) -> FloatArray:
        return self.values(theta)

    def _summed(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        top = theta.max(axis=1, keepdims=True)
        parts = np.exp(theta - top)
        total = parts.sum(axis=1)
        return np.log(total) + top[:, 0], parts / total[:, None]

    def _spread(self, total: Any, slope: float, level: FloatArray) -> FloatArray:
        found: FloatArray = total - np.log(len(self._options.counts)) + slope * level
        return found

    def _stretch(self) -> FloatArray | float:
        return self._data.log_slopes


class LogOfSum(LogAdditive):
    """An objective that is itself the logarithm of a sum of positive parts, such as a log loss."""

    def values(self, latent: FloatArray) -> FloatArray:
        return latent

    def _latent(self, data: Data) -> tuple[FloatArray, FloatArray]:
        return data.values, np.full(len(data), np.nan) if data.variances is None else data.variances

    def _added(self, theta: FloatArray) -> FloatArray:
        found: FloatArray = np.exp(theta - theta.max())
        return found

    def _stretch(self) -> float:
        return 0.0


class LinearAdditive(AdditiveSurrogate):
    """Any number that is a sum of one part for each decision, such as an accuracy; modelled after standardising."""

    def values(self, latent: FloatArray) -> FloatArray:
        found: FloatArray = self._centre + self._scale * latent
        return found

    def _start(self, data: Data) -> None:
        self._centre, self._scale = float(data.values.mean()), float(data.values.std()) or 1.0

    def _latent(self, data: Data) -> tuple[FloatArray, FloatArray]:
        variances = np.full(len(data), np.nan) if data.variances is None else data.variances / self._scale**2
        return (data.values - self._centre) / self._scale, variances

    def _known(self, row: FloatArray) -> FloatArray:
        scaled = np.where(np.isfinite(row), row, 0.0) / self._scale / self._unit
        latent, _ = self._summed(scaled[self._options.places(self._data.codes)])
        found: FloatArray = scaled + np.median(self._targets - latent) / self._unit / len(self._options.counts)
        return found

    def _added(self, theta: FloatArray) -> FloatArray:
        found: FloatArray = theta * (self._unit * self._scale)
        return found

    def _summed(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self._unit * theta.sum(axis=1), np.full(theta.shape, self._unit)

    def _spread(self, total: Any, slope: float, level: FloatArray) -> FloatArray:
        found: FloatArray = (total + slope * level) / len(self._options.counts) / self._unit
        return found

    def _stretch(self) -> float:
        return -float(np.log(self._scale))

    @property
    def _unit(self) -> float:
        """What a theta of 1 adds to the latent number, so that the same prior scales suit any number of decisions."""
        return float(1 / np.sqrt(len(self._options.counts)))
