"""What a map of elites spans: figures of a candidate, cut into cells. Searches nothing and draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.errors import AlgorithmError
from moopt.problem import Objective

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

EDGE = 1e-6
"""What lies on the edge of a cell belongs to the upper one, to this share of a cell."""


@dataclass(frozen=True)
class Descriptor:
    """One side of a map.

    Attributes:
        name: An objective, a constraint, another value of `known`, or an attribute that `evaluate` gives.
        low: The map's least value; None: the least so far. What lies outside belongs to the cell at the edge.
        high: Its greatest; None: the greatest so far.
        bins: How many cells it has.
    """

    name: str
    low: float | None = None
    high: float | None = None
    bins: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise AlgorithmError(f"A descriptor is named {self.name!r}; expected a non-empty string.")
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or self.bins < 1:
            raise AlgorithmError(f"Descriptor {self.name!r} has bins={self.bins!r}; expected a whole number above 0.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise AlgorithmError(f"Descriptor {self.name!r} goes from {self.low} to {self.high}; expected low < high.")


def quality(objectives: Sequence[Objective], name: str | None = None) -> Objective:
    """The objective of that name; None: the first that is measured, else the first.

    Raises:
        AlgorithmError: there is no objective of that name.
    """
    if name is None:
        return next((o for o in objectives if not o.known), objectives[0])
    for objective in objectives:
        if objective.name == name:
            return objective
    raise AlgorithmError(
        f"There is no objective {name!r} to be the quality; expected one of {', '.join(o.name for o in objectives)}."
    )


def sides(objectives: Sequence[Objective], best: Objective, given: Iterable[Descriptor] | None) -> list[Descriptor]:
    """What is given; else at most two objectives: the known ones, else those that are not `best`, else `best`."""
    if given is not None:
        return list(given)
    others = [o for o in objectives if o is not best]
    return [Descriptor(o.name) for o in ([o for o in others if o.known] or others or [best])[:2]]


def described(descriptors: Sequence[Descriptor], values: Mapping[str, Any]) -> list[float]:
    """The figures [k] of a candidate.

    Raises:
        AlgorithmError: one is missing or no finite number; says what there is.
    """
    for descriptor in descriptors:
        found = values.get(descriptor.name)
        if not isinstance(found, (int, float)) or not math.isfinite(found):
            raise AlgorithmError(
                f"The map's descriptor {descriptor.name!r} is {found!r} for a candidate; expected a finite number. "
                f"Candidates have {', '.join(values)}."
            )
    return [float(values[descriptor.name]) for descriptor in descriptors]


def ranges(descriptors: Sequence[Descriptor], points: FloatArray) -> FloatArray:
    """From where to where the map goes, [2, k]: declared, else what points [n, k] span."""
    low = [float(points[:, i].min()) if d.low is None else d.low for i, d in enumerate(descriptors)]
    high = [float(points[:, i].max()) if d.high is None else d.high for i, d in enumerate(descriptors)]
    return np.array([low, [h if h > at else at + 1.0 for at, h in zip(low, high, strict=True)]])


def cells(descriptors: Sequence[Descriptor], points: FloatArray) -> IntArray:
    """The cell of each point [n, k] in the map that they span, [n, k]."""
    low, high = ranges(descriptors, points)
    bins = np.array([d.bins for d in descriptors])
    found: FloatArray = np.floor((points - low) / (high - low) * bins + EDGE)
    return np.clip(found, 0, bins - 1).astype(np.int64)
