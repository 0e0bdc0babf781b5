"""What makes two studies the same: what is stored when one begins, and what must match when it goes on."""

from __future__ import annotations

import inspect
import logging
import platform
from collections.abc import Mapping
from typing import Any

from moopt.algorithms import Algorithm
from moopt.errors import ProblemError, StudyMismatch
from moopt.preference import Preference
from moopt.problem import Problem, plain

logger = logging.getLogger("moopt")


def meta(problem: Problem, algorithm: Algorithm, seed: int, preference: Preference | None = None) -> dict[str, Any]:
    """What is stored with a study, as JSON: its identity, its environment, and what the views need.

    Raises:
        ProblemError: the problem's fingerprint or decisions are no JSON.
    """
    kind, fingerprint = type(problem).__name__, problem.fingerprint()
    if not isinstance(fingerprint, Mapping) or not all(
        isinstance(fingerprint.get(key), Mapping) for key in ("identity", "environment")
    ):
        raise ProblemError(
            f"{kind}.fingerprint gives {fingerprint!r}; expected {{'identity': {{...}}, 'environment': {{...}}}}."
        )
    objectives = [_objective(o) for o in problem.objectives]
    constraints = [vars(c) for c in problem.constraints]
    found = {
        "version": 1,
        "identity": {
            **fingerprint["identity"],
            "space": problem.space.describe(),
            "objectives": objectives,
            "constraints": constraints,
            "fidelity": vars(problem.fidelity),
            "algorithm": algorithm.settings(),
            "seed": seed,
            **({} if preference is None else {"preference": preference.describe()}),
        },
        "environment": {"python": platform.python_version(), **fingerprint["environment"]},
        "objectives": objectives,
        "constraints": constraints,
        "decisions": problem.decisions(),
        "measurements": list(problem.measurements),
        "source": _source(problem),
    }
    try:
        stored: dict[str, Any] = plain(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProblemError(
            f"The fingerprint or the decisions of {kind} cannot be stored: {error}. Give plain numbers and text."
        ) from error
    return stored


def compare(name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study of another identity; warn about another environment.

    Raises:
        StudyMismatch: names every entry that differs.
    """
    differing = _differences(stored["identity"], now["identity"])
    if differing:
        raise StudyMismatch(
            f"The storage has a study {name!r} that differs: {'; '.join(differing)}. "
            "Give this study another name or another storage, or restore what it was."
        )
    if changed := _differences(stored["environment"], now["environment"]):
        logger.warning("The environment changed since %r began: %s.", name, "; ".join(changed))


def compare_problems(name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a problem that a study was not run with, however it was searched.

    Raises:
        StudyMismatch: names every entry that differs.
    """
    before, after = ({k: v for k, v in each["identity"].items() if k not in _SEARCH} for each in (stored, now))
    if differing := _differences(before, after):
        raise StudyMismatch(
            f"The study {name!r} was run with another problem: {'; '.join(differing)}. Give the problem as it was."
        )


_SEARCH = ("algorithm", "seed", "preference")
"""What of an identity is of the search alone."""


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found if len(found) <= 6 else [*found[:6], f"and {len(found) - 6} more"]


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _objective(objective: Any) -> dict[str, Any]:
    found = {k: getattr(objective, k) for k in ("name", "direction", "unit", "known", "reference")}
    return found if objective.scale == "linear" else {**found, "scale": objective.scale, "least": objective.least}


def _source(problem: Problem) -> str:
    try:
        return f"{inspect.getsourcefile(type(problem))}:{type(problem).__qualname__}"
    except (TypeError, OSError):  # a class of the interpreter's prompt has no file
        return type(problem).__qualname__
