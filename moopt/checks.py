"""Refuses what cannot be a study, before anything is stored: its name, its numbers, its problem and its algorithm."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from moopt.algorithms import Algorithm
from moopt.errors import AlgorithmError, CapabilityError, ProblemError, StudyError
from moopt.problem import (
    CAPABILITIES,
    Constraint,
    Objective,
    Problem,
    capabilities,
    configurations,
    is_finite,
    known_values,
)
from moopt.space import Space

LONGEST = 512
"""Characters of a study's name that a database takes."""


def name(value: object) -> None:
    """Refuse a name that no storage takes."""
    if not isinstance(value, str) or not value:
        raise StudyError(f"The study is named {value!r}; expected a non-empty string.")
    if len(value) > LONGEST or "\0" in value:
        raise StudyError(
            f"The study's name has {len(value)} characters{', one of them NUL' if chr(0) in value else ''}; expected "
            f"at most {LONGEST}, and no NUL."
        )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise StudyError(f"The study's name {value!r} has bytes in it that are no UTF-8; expected text.")


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, Python's or numpy's, from `least` on."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise StudyError(f"{name} is {value!r}; expected a whole number from {least}.")
    return number


def seconds(name: str, value: object) -> None:
    """Refuse what is no time above 0; None is none."""
    if value is not None and (isinstance(value, bool) or not is_finite(value) or not float(value) > 0):  # type: ignore[arg-type]
        raise StudyError(f"{name} is {value!r}; expected seconds above 0, or None.")


def problem(found: object) -> None:
    """Refuse a problem that cannot be searched."""
    if isinstance(found, type) or not isinstance(found, Problem):
        hint = f"{found.__name__}() is one" if isinstance(found, type) else "subclass moopt.Problem"
        raise ProblemError(f"The problem is {found!r}; expected a moopt.Problem: {hint}.")
    kind = type(found).__name__
    if not isinstance(getattr(found, "space", None), Space):
        raise ProblemError(f"{kind}.space is {getattr(found, 'space', None)!r}; expected a moopt.Space.")
    _all_are(Objective, f"{kind}.objectives", getattr(found, "objectives", None))
    _all_are(Constraint, f"{kind}.constraints", found.constraints)
    if not found.objectives:
        raise ProblemError(f"{kind} has no objectives; give at least one moopt.Objective.")
    names = [o.name for o in found.objectives]
    if len(set(names)) != len(names):
        raise ProblemError(f"{kind} has objectives of one name: {', '.join(names)}.")
    baselines = configurations(found, "baselines", found.baselines())
    for label, config in baselines.items():
        try:
            known_values(found, config)
        except ProblemError as error:
            raise ProblemError(f"{label!r} of {kind}.baselines: {error}") from error
    _first(found, baselines)


def _first(found: Problem, baselines: Mapping[str, Any]) -> None:
    """Refuse decisions to settle first that cannot be."""
    kind, first = type(found).__name__, found.first
    named = isinstance(first, Sequence) and not isinstance(first, str) and len(set(first)) == len(first)
    if not named or any(name not in found.space for name in first):
        raise ProblemError(f"{kind}.first is {first!r}; expected names of decisions of its space, each once.")
    if not first:
        return
    for name, simplex in found.space.simplexes.items():
        within = simplex.variables(name).keys()
        if within & set(first) and not within <= set(first):
            raise ProblemError(f"{kind}.first has a part of the simplex {name!r}; expected all of {', '.join(within)}.")
    if not baselines:
        raise ProblemError(f"{kind} has decisions to settle first and no baselines; the first says what others are.")
    if all(objective.known for objective in found.objectives):
        raise ProblemError(f"{kind} has decisions to settle first and nothing that is measured to settle them by.")


def algorithm(found: object, problem: Problem) -> None:
    """Refuse an algorithm that needs more than the problem has."""
    if not isinstance(found, Algorithm):
        raise AlgorithmError(f"The algorithm is {found!r}; expected a name or an algorithm, such as NSGA2().")
    missing = sorted(found.requires - capabilities(problem))
    if missing:
        what = ", ".join(f"{name} ({(CAPABILITIES[name].__doc__ or '').splitlines()[0]})" for name in missing)
        raise CapabilityError(f"{type(found).__name__} needs what {type(problem).__name__} lacks: {what}")


def _all_are(kind: type, what: str, values: object) -> None:
    if not isinstance(values, Sequence) or not all(isinstance(value, kind) for value in values):
        raise ProblemError(f"{what} is {values!r}; expected a tuple of moopt.{kind.__name__}.")
