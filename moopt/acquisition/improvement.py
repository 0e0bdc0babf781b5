"""The hypervolume that candidates would add to a front, over draws of what they and the front are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from moopt import pareto

FloatArray = npt.NDArray[np.float64]

AT_ONCE = 4_000_000
"""Numbers that are held at a time."""

MANY, MOST, MOST_OF_MORE = 4, 40, 20
"""From so many objectives on, at most so many values of a front are kept; fewer with more objectives."""


class Improvement:
    """The improvement over fronts, by splitting what they do not dominate into boxes (Daulton et al. 2020).

    With three objectives and more, splitting takes tens of milliseconds a front: give one for all draws. With four and
    more it takes seconds for a large front: only those values are kept that contribute most to the hypervolume.

    Args:
        fronts: Values to be minimised, [s, n, m]; one front for each of s draws, or [1, n, m] for all. Dominated
            values, those beyond the reference and NaN, which counts as that, may be among them.
        reference: The corner up to which volume counts, [m].
    """

    def __init__(self, fronts: FloatArray, reference: FloatArray) -> None:
        within = np.fmin(fronts, reference)
        most = MOST if len(reference) <= MANY else MOST_OF_MORE
        if len(reference) >= MANY and fronts.shape[1] > most:
            within = np.stack([_thinned(front, reference, most) for front in within])
        self._lower, self._upper = _boxes(within, reference)

    def of(self, draws: FloatArray) -> FloatArray:
        """The volume [s, n] that each draw [s, n, m] of candidates adds to its front."""
        s, n, m = draws.shape
        found = np.empty((s, n))
        step = max(1, AT_ONCE // max(1, s * self._lower.shape[1] * m))
        for begin in range(0, n, step):
            volume = np.ones(())
            for j in range(m):
                part = draws[:, begin : begin + step, None, j]
                side = self._upper[:, None, :, j] - np.maximum(self._lower[:, None, :, j], part)
                volume = volume * np.maximum(side, 0.0, out=side)
            found[:, begin : begin + step] = volume.sum(axis=2)
        return found

    def expected(self, values: FloatArray, weights: FloatArray) -> FloatArray:
        """The volume [n] that candidates are expected to add to the one front, where objectives are independent.

        A box's side is a difference of two expected shortfalls, and its volume the product of the expected sides.

        Args:
            values: What each objective of each candidate may be, [q, n, m]; NaN adds nothing.
            weights: How likely, [q].
        """
        _, n, m = values.shape
        values = np.where(np.isnan(values), np.inf, values)
        volume: FloatArray = np.ones((n, self._lower.shape[1]))
        for j in range(m):
            lower, upper = self._lower[0, :, j], self._upper[0, :, j]
            edges, places = np.unique(np.concatenate([lower, upper]), return_inverse=True)
            short = np.zeros((n, len(edges)))
            for column, edge in enumerate(edges):
                if np.isfinite(edge):  # nothing falls short of minus infinity
                    short[:, column] = weights @ np.maximum(edge - values[:, :, j], 0.0)
            volume *= np.maximum(short[:, places[len(lower) :]] - short[:, places[: len(lower)]], 0.0)
        found: FloatArray = volume.sum(axis=1)
        return found


def _thinned(front: FloatArray, reference: FloatArray, most: int) -> FloatArray:
    """The `most` values of a front [n, m] without which most hypervolume would be lost, [most, m]."""
    on = np.flatnonzero(pareto.nondominated(front))
    whole = pareto.hypervolume(front[on], reference)
    lost = np.full(len(front), -1.0)
    lost[on] = [whole - pareto.hypervolume(np.delete(front[on], i, axis=0), reference) for i in range(len(on))]
    return front[np.argsort(-lost, kind="stable")[:most]]


def _boxes(fronts: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper corners [s, k, m] of boxes that fill what the fronts leave below the reference."""
    s, n, m = fronts.shape
    if n == 0:
        return np.full((s, 1, m), -np.inf), np.broadcast_to(reference, (s, 1, m)).copy()
    if m == 1:
        return np.full((s, 1, 1), -np.inf), fronts.min(axis=1, keepdims=True)
    if m == 2:
        return _strips(fronts, reference)
    import torch
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning

    corner = torch.from_numpy(-reference)
    splits = [FastNondominatedPartitioning(corner, torch.from_numpy(-front)).get_hypercell_bounds() for front in fronts]
    lower, upper = np.full((2, s, max(split.shape[1] for split in splits), m), reference)
    for k, split in enumerate(splits):
        upper[k, : split.shape[1]], lower[k, : split.shape[1]] = -split.numpy()
    return lower, upper


def _strips(fronts: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same for two objectives: a strip between any two neighbours along the first."""
    order = np.argsort(fronts[..., 0], axis=1, kind="stable")
    first = np.take_along_axis(fronts[..., 0], order, axis=1)
    second = np.minimum.accumulate(np.take_along_axis(fronts[..., 1], order, axis=1), axis=1)
    s = len(fronts)
    left = np.hstack([np.full((s, 1), -np.inf), first])
    right = np.hstack([first, np.full((s, 1), reference[0])])
    top = np.hstack([np.full((s, 1), reference[1]), second])
    lower = np.stack([left, np.full(left.shape, -np.inf)], axis=2)
    return lower, np.stack([right, top], axis=2)


def expected_improvement(means: FloatArray, deviations: FloatArray, least: float) -> FloatArray:
    """How far normal numbers are expected to be below a value, [n] (Jones, Schonlau and Welch 1998)."""
    below = least - means
    standard = below / np.maximum(deviations, np.finfo(float).tiny)
    found: FloatArray = below * norm.cdf(standard) + deviations * norm.pdf(standard)
    return found
