"""Which surrogate an objective gets: the one that predicts each measured value best from all the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from moopt.errors import SurrogateError
from moopt.one_thread import one_thread
from moopt.space import Space
from moopt.surrogates.base import Data, Surrogate
from moopt.surrogates.gaussian import Encoding, Features, GaussianProcess, LogGaussianProcess
from moopt.surrogates.options import Options, listable
from moopt.surrogates.sums import LinearAdditive, LogAdditive, LogOfSum

LARGEST = 1e100
"""The size of values that can be modelled."""
MOST_DECISIONS = 30
"""Discrete decisions up to which a general Gaussian process is tried beside the additive surrogates."""


@one_thread()
def fit(
    data: Data,
    space: Space,
    prior: npt.ArrayLike | None = None,
    features: Features | None = None,
    additive: bool = True,
) -> Surrogate:
    """The surrogate of what was measured that predicts it best, each value from all the others.

    Args:
        data: What was measured, three values at least.
        space: What the candidates are of.
        prior: What each option of the discrete decisions is estimated to add to the values, [decisions, options], where
            the problem knows.
        features: The problem's own numbers for a general surrogate; None: the encoded candidates.
        additive: Whether a surrogate may give each option of each discrete decision a share of its own.

    Raises:
        SurrogateError: none can be fitted; says why.
    """
    if not np.abs(data.values).max() < LARGEST:
        raise SurrogateError(f"Values of {np.abs(data.values).max():.3g} are too large for a surrogate.")
    found: list[Surrogate] = []
    reasons: list[str] = []
    for make in _candidates(data, space, prior, features or Encoding(space), additive):
        try:
            surrogate = make()
        except ValueError as error:  # numpy's LinAlgError and SurrogateError are such
            reasons.append(str(error))
            continue
        if np.isfinite(surrogate.score):
            found.append(surrogate)
    if not found:
        raise SurrogateError(f"No surrogate fits {len(data)} values: {'; '.join(reasons) or 'no score is finite'}")
    return max(found, key=lambda surrogate: surrogate.score)


def _candidates(
    data: Data, space: Space, prior: npt.ArrayLike | None, features: Features, additive: bool
) -> Iterator[Callable[[], Surrogate]]:
    positive = bool((data.values > 0).all())
    decisions = int(space.discrete.sum())
    if additive and decisions > 1 and listable(space):
        options = Options(space)
        if prior is not None:
            if positive:
                yield partial(LogAdditive, data, options, prior)
            if not positive or decisions < len(space):  # what numbers bring is there without any damage
                yield partial(LinearAdditive, data, options, prior)
        yield partial(LinearAdditive, data, options)
        yield partial(LogOfSum, data, options)
        if positive:
            yield partial(LogAdditive, data, options)
        if decisions > MOST_DECISIONS:
            return
    yield partial(GaussianProcess, data, features)
    if positive:
        yield partial(LogGaussianProcess, data, features)
