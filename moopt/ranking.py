"""How well additive tables rank measured candidates: Spearman correlations with bootstrap intervals. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DRAWS = 2000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class Measured:
    """Candidates that were measured.

    Attributes:
        options: The option that each decision takes, n x d, by its column in a table.
        losses: What was measured, n.
        sizes: Which size each is of, n: over free sizes the mean width ranks well by itself.
    """

    options: IntArray
    losses: FloatArray
    sizes: FloatArray

    def part(self, rows: IntArray) -> Measured:
        """Some of the candidates."""
        return Measured(self.options[rows], self.losses[rows], self.sizes[rows])

    def predicted(self, table: FloatArray) -> FloatArray:
        """The sums of a table [d, options] over what each candidate takes, n."""
        total: FloatArray = table[np.arange(self.options.shape[1]), self.options].sum(axis=1)
        return total


@dataclass(frozen=True)
class Interval:
    """A figure and where 95% of its bootstrap draws lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spearman(first: FloatArray, second: FloatArray) -> FloatArray:
    """Rank correlations along the last axis; 0 where one does not vary."""
    a, b = (rankdata(x, axis=-1) for x in (first, second))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    found: FloatArray = np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)
    return found


def overall(measured: Measured, predicted: FloatArray) -> Interval:
    """The Spearman correlation of predictions [n] over all candidates, whatever their size."""
    return _interval(_along(measured, predicted, np.arange(len(predicted)), DRAWS))


def within(measured: Measured, predicted: FloatArray) -> dict[float, Interval]:
    """The Spearman correlation of predictions [n] within each size."""
    return {size: _interval(_along(measured, predicted, rows, DRAWS)) for size, rows in _by_size(measured).items()}


def fitness(measured: Measured, predicted: FloatArray) -> float:
    """The mean over sizes of the Spearman correlation of predictions [n] within each."""
    return float(_mean_within(measured, predicted, 0)[0])


def mean_within(measured: Measured, predicted: FloatArray) -> Interval:
    """`fitness` with its interval."""
    return _interval(_mean_within(measured, predicted, DRAWS))


def gain(measured: Measured, new: FloatArray, old: FloatArray) -> Interval:
    """By how much the fitness of new predictions [n] is above that of old ones, on the same bootstrap draws."""
    return _interval(_mean_within(measured, new, DRAWS) - _mean_within(measured, old, DRAWS))


def _mean_within(measured: Measured, predicted: FloatArray, draws: int) -> FloatArray:
    found = [_along(measured, predicted, rows, draws) for rows in _by_size(measured).values()]
    mean: FloatArray = np.mean(found, axis=0)
    return mean


def _along(measured: Measured, predicted: FloatArray, rows: IntArray, draws: int) -> FloatArray:
    """Correlations over some candidates, then over bootstrap draws of them, [1 + draws]."""
    drawn = rows[np.random.default_rng(0).integers(len(rows), size=(draws, len(rows)))]
    taken = np.concatenate([rows[None], drawn])
    return spearman(predicted[taken], measured.losses[taken])


def _by_size(measured: Measured) -> dict[float, IntArray]:
    return {float(size): np.flatnonzero(measured.sizes == size) for size in np.unique(measured.sizes)}


def _interval(found: FloatArray) -> Interval:
    """Of a value and its bootstrap draws."""
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Interval(float(found[0]), float(low), float(high))
