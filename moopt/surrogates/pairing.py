"""The errors of values that were measured on the same sequences: what candidates do not share of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FEWEST = 8
"""Candidates that are needed to tell what sequences do to all of them."""


def paired(values: FloatArray, variances: FloatArray, samples: Sequence[Sequence[float] | None]) -> FloatArray:
    """The variances [n] of the errors that distinguish candidates.

    The mean over a few sequences is far from that over all text, but much of the error is the same for all candidates:
    what is hard for one is hard for the others. Every sequence is taken to shift all candidates (in the logarithm,
    where all is positive) along a line over their means; what is left after that is each candidate's own error.

    Args:
        values: The candidates' means, [n].
        variances: The variances of their errors as each was measured alone, [n]; NaN where none was.
        samples: Each candidate's value on every sequence; None where there are none.

    Returns:
        `variances` itself, unless eight candidates and more were all measured on the same number of sequences.
    """
    lengths = {0 if each is None else len(each) for each in samples}
    if len(samples) < FEWEST or len(lengths) > 1 or max(lengths) < 2:
        return variances
    table = np.array([each for each in samples if each is not None], dtype=float)
    positive = bool((table > 0).all() and (values > 0).all())
    table = np.log(table) if positive else table
    n, s = table.shape
    lines = np.column_stack([np.ones(n), table.mean(axis=1)])
    shared = lines @ np.linalg.lstsq(lines, table, rcond=None)[0]
    own = float(((table - shared) ** 2).sum() / ((n - 2) * (s - 1)) / s)
    found: FloatArray = own * values**2 if positive else np.full(n, own)
    return found
