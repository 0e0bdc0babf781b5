"""What part of the front a user cares about: it steers the search, and changes nothing in what a trial is worth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moopt.errors import StudyError
from moopt.problem import Constraint, Problem, is_finite
from moopt.region import Region

EXAMPLES = {"bounds": {"size_mb": 80}, "weights": {"kl": 2, "size_mb": 1}, "reference": {"kl": 0.5, "size_mb": 80}}


@dataclass(frozen=True)
class Preference:
    """A region of the objectives: "I only care under 80 MB", or "kl counts twice as much as size".

    To the algorithm, what lies outside breaks a constraint: it is no parent and no part of the front that is to be
    improved on, and where it lies beyond a bound that is known it is never evaluated, be it a baseline. To the study
    it is a trial like any other.

    Attributes:
        bounds: The worst value of interest by objective: the greatest of one to minimise, the least of one to maximise.
        weights: How much each objective counts, numbers above 0; one that is left out counts nothing. The region is
            what is near the point of the front that is best for them: see `moopt.region.Region`. It moves as the
            front is found.
        reference: Bounds up to which the hypervolume counts as well, in place of the references of the objectives.
        width: The size of the region that the weights point to: how much farther from the ideal point than the best it
            goes, as a share of the front's range in the objective that counts most.

    Raises:
        StudyError: nothing is given, an objective has both a bound and a reference, or a number makes no sense.
    """

    bounds: Mapping[str, float] | None = None
    weights: Mapping[str, float] | None = None
    reference: Mapping[str, float] | None = None
    width: float = 0.1

    def __post_init__(self) -> None:
        given = self._given()
        if not given:
            raise StudyError("The preference says nothing; expected bounds, weights or a reference.")
        for what, numbers in given.items():
            if not isinstance(numbers, Mapping) or not numbers or not all(map(_is_number, numbers.values())):
                raise StudyError(
                    f"The {what} {_be(what)} {numbers!r}; expected numbers by objective, such as {EXAMPLES[what]}."
                )
        if not all(weight > 0 for weight in (self.weights or {}).values()):
            raise StudyError(
                f"The weights are {self.weights!r}; expected numbers above 0. Leave out what counts nothing."
            )
        if not is_finite(self.width) or self.width <= 0:
            raise StudyError(
                f"The width is {self.width!r}; expected a share of the front's range above 0, such as 0.1."
            )
        if both := sorted((self.bounds or {}).keys() & (self.reference or {}).keys()):
            raise StudyError(f"Bounds and reference both name {', '.join(both)}; a reference is a bound, so give one.")

    def applied(self, problem: Problem) -> Problem:
        """The problem as an algorithm is to see it: with the bounds for constraints, and the reference.

        Raises:
            StudyError: it has no objective of a name, or its objectives and constraints cannot be set.
        """
        objectives = {objective.name: objective for objective in problem.objectives}
        for what, numbers in self._given().items():
            if unknown := sorted(numbers.keys() - objectives.keys()):
                raise StudyError(
                    f"The preference's {what} name {', '.join(unknown)}; expected objectives of the problem: "
                    f"{', '.join(objectives)}."
                )
        corner, kinds = self.reference or {}, {"min": Constraint, "max": _AtLeast}
        worst = {**(self.bounds or {}), **corner}
        bounds = [kinds[objectives[name].direction](name, bound) for name, bound in worst.items()]
        seen = copy.copy(problem)
        try:
            seen.objectives = [replace(o, reference=corner.get(o.name, o.reference)) for o in problem.objectives]
            seen.constraints = (*problem.constraints, *bounds)
        except AttributeError as error:
            raise StudyError(
                f"The objectives or constraints of {type(problem).__name__} cannot be set ({error}), as a preference "
                "does in a copy of the problem; make them attributes, not properties."
            ) from error
        return seen

    def region(self, problem: Problem) -> Region | None:
        """What the weights point to; None without weights."""
        weights = self.weights
        return None if weights is None else Region([weights.get(o.name, 0.0) for o in problem.objectives], self.width)

    def describe(self) -> dict[str, Any]:
        """JSON, for the study's identity."""
        return {what: dict(numbers) for what, numbers in self._given().items()} | (
            {} if self.weights is None else {"width": self.width}
        )

    def _given(self) -> dict[str, Mapping[str, float]]:
        parts = {"bounds": self.bounds, "weights": self.weights, "reference": self.reference}
        return {what: numbers for what, numbers in parts.items() if numbers is not None}


def _is_number(value: object) -> bool:
    return is_finite(value) and not isinstance(value, bool)


def _be(what: str) -> str:
    return "are" if what.endswith("s") else "is"


class _AtLeast(Constraint):
    """A number that must not fall below its bound."""

    def excess(self, value: Any) -> Any:
        return self.bound - value
