"""How good a search was: its share of the hypervolume, and its distance to the front (IGD+)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import moocore
import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.bench.races import Race
from moopt.bench.units import Unit
from moopt.errors import StudyError
from moopt.problem import Problem

FloatArray = npt.NDArray[np.float64]

FRONT_POINTS = 1_000
"""About as many points of a front are enough for IGD+."""


@runtime_checkable
class HasFront(Protocol):
    """A problem that knows its Pareto front."""

    def front(self) -> FloatArray:
        """Points of it, [n, m], as the objectives are."""


@runtime_checkable
class HasMaximumHypervolume(Protocol):
    """A problem that knows the hypervolume of its whole front."""

    def maximum_hypervolume(self) -> float | None:
        """Up to the references its objectives declare; None where it does not know after all."""


@dataclass(frozen=True)
class Target:
    """What a race's searches are scored against.

    Attributes:
        reference: The reference point, to be minimised, [m].
        best: The points of the front, or the best that all units found, to be minimised, [n, m].
        maximum: The hypervolume that counts as 1.
        exact: Whether that is the problem's own; else it is that of the best points all units found.
    """

    reference: FloatArray
    best: FloatArray
    maximum: float
    exact: bool

    def share(self, values: FloatArray) -> float:
        """The hypervolume of points [n, m] as a share of the maximum; 0 where nothing is better than the reference."""
        found = pareto.hypervolume(values, self.reference) if len(values) else 0.0
        return found / self.maximum if self.maximum else 0.0

    def distance(self, values: FloatArray) -> float:
        """IGD+ (Ishibuchi et al. 2015) of points [n, m]; objectives scaled so that ideal to reference is 0 to 1."""
        if not len(values):
            return float("inf")
        scale = self.reference - self._ideal
        front = (self.best - self._ideal) / scale
        thin = front[:: max(1, len(front) // FRONT_POINTS)]
        return float(moocore.igd_plus((values - self._ideal) / scale, ref=thin))

    @cached_property
    def _ideal(self) -> FloatArray:
        ideal: FloatArray = self.best.min(axis=0)
        return ideal


def target(race: Race, found: Sequence[Unit]) -> Target:
    """What the units of a race are scored against.

    The problem's front and maximum where it has them; else the best that all units of the race found, whoever found
    it, and so the shares change when units are added.

    Raises:
        StudyError: nothing is known and no unit found anything feasible.
    """
    problem = race.problem
    sets = [unit.front(race.evaluations) for unit in found if unit.race == race.name]
    points = np.concatenate([each for each in sets if len(each)]) if any(map(len, sets)) else None
    known = _front(problem)
    best = known if known is not None else points
    if best is None:
        raise StudyError(f"Nothing feasible was found in the race {race.name!r}, and its front is not known.")
    best = best[pareto.nondominated(best)]
    declared = [None if o.reference is None else o.sign * o.reference for o in problem.objectives]
    reference = pareto.reference_point(best, declared)
    maximum = problem.maximum_hypervolume() if isinstance(problem, HasMaximumHypervolume) else None
    exact = maximum is not None or known is not None
    return Target(reference, best, maximum or pareto.hypervolume(best, reference), exact)


def _front(problem: Problem) -> FloatArray | None:
    if not isinstance(problem, HasFront):
        return None
    return np.asarray(problem.front()) * [o.sign for o in problem.objectives]
