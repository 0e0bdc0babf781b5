"""Paired comparisons of two candidates by their values on the same sequences. Statistics only: it measures nothing.

What sequences share, some being hard for every candidate, cancels in the differences, so that far fewer of them tell
two candidates apart than their separate means would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from moopt.errors import StudyError

FEWEST = 4
"""With fewer sequences nothing is sure: the spread of so few differences says little."""
CONFIDENCE = 0.999
"""Of a one-sided test; high, for what is compared was often the best of many by the same values."""


@dataclass(frozen=True)
class Difference:
    """By how much a first candidate's values exceed a second's on the same sequences.

    Attributes:
        mean: The mean difference, in the unit of the values; below 0 where the first is lower.
        error: The standard error of the mean; 0 where all differences are equal.
        count: How many sequences were compared.
    """

    mean: float
    error: float
    count: int

    def bound(self, confidence: float) -> float:
        """What the true mean is below, with this confidence (one-sided, Student's t); the mean where all are equal."""
        return self.mean + self.error * float(stdtrit(self.count - 1, confidence))


def difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Compare two candidates, given the values [s] of each on the same s sequences in the same order.

    Raises:
        StudyError: they are no flat lists of finite numbers, differ in length, or have fewer than two.
    """
    a, b = _values(first), _values(second)
    if len(a) != len(b):
        raise StudyError(
            f"Got {len(a)} and {len(b)} samples; expected as many of both, on the same sequences. "
            "Compare candidates that were measured at the same fidelity."
        )
    if len(a) < 2:
        raise StudyError(f"Got samples of length {len(a)}; expected at least 2, or there is no spread to judge by.")
    apart = a - b
    return Difference(float(apart.mean()), float(apart.std(ddof=1) / np.sqrt(len(apart))), len(apart))


def surely_below(first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = CONFIDENCE) -> bool:
    """Whether a first candidate's mean is lower than a second's, by a paired one-sided t-test.

    Args:
        first: Its values on s sequences, [s].
        second: The other's on the same sequences, [s].
        confidence: What the test has to reach, between 0.5 and 1.

    Returns:
        False as well where there are fewer than `FEWEST` sequences.

    Raises:
        StudyError: the confidence is out of its range, or the values cannot be compared: see `difference`.
    """
    if not 0.5 < confidence < 1:
        raise StudyError(f"The confidence is {confidence!r}; expected a number above 0.5 and below 1.")
    found = difference(first, second)
    return found.count >= FEWEST and found.bound(confidence) < 0


def _values(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(samples, dtype=float)
    except (TypeError, ValueError) as error:
        raise StudyError(f"Got the samples {samples!r}; expected a flat list of numbers.") from error
    if values.ndim != 1 or not np.isfinite(values).all():
        raise StudyError(f"Got samples of shape {values.shape}, or not finite; expected [s] finite numbers.")
    return values
