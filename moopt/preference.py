"""What part of the front a user cares about: it steers the search, and changes nothing in what a trial is worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moopt.errors import StudyError
from moopt.problem import Constraint, Problem


@dataclass(frozen=True)
class Preference:
    """A region of the objectives: "I only care under 80 MB".

    To the algorithm, what lies beyond the bounds breaks a constraint: it is no parent and no part of the front that is
    to be improved on, and where the objective is known it is never evaluated, be it a baseline. To the study it is a
    trial like any other.

    Attributes:
        bounds: The worst value of interest by objective: the greatest of one to minimise, the least of one to maximise.

    Raises:
        StudyError: there is no bound, or one is not a finite number.
    """

    bounds: Mapping[str, float]

    def __post_init__(self) -> None:
        numbers = isinstance(self.bounds, Mapping) and all(
            isinstance(bound, (int, float)) and math.isfinite(bound) for bound in self.bounds.values()
        )
        if not numbers or not self.bounds:
            raise StudyError(
                f'The bounds are {self.bounds!r}; expected numbers by objective, such as {{"size_mb": 80}}.'
            )

    def applied(self, problem: Problem) -> Problem:
        """The problem as an algorithm is to see it.

        Raises:
            StudyError: it has no objective of a name that is bounded.
        """
        objectives = {objective.name: objective for objective in problem.objectives}
        if unknown := sorted(self.bounds.keys() - objectives.keys()):
            raise StudyError(
                f"The preference bounds {', '.join(unknown)}; expected objectives of the problem: "
                f"{', '.join(objectives)}."
            )
        kinds = {"min": Constraint, "max": _AtLeast}
        bounds = [kinds[objectives[name].direction](name, bound) for name, bound in self.bounds.items()]
        seen = copy.copy(problem)
        seen.constraints = (*problem.constraints, *bounds)
        return seen

    def describe(self) -> dict[str, Any]:
        """JSON, for the study's identity."""
        return {"bounds": dict(self.bounds)}


class _AtLeast(Constraint):
    """A number that must not fall below its bound."""

    def excess(self, value: Any) -> Any:
        return self.bound - value
