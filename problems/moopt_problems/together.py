"""Which problems can be parts of one joint problem: in which order, of which model, with which objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from moopt.backend import models
from moopt.backend.joint import DISTANCE
from moopt.errors import ProblemError
from moopt.problem import Objective, Problem
from moopt_problems.bit_allocation import BitAllocation
from moopt_problems.kv_precision import KVCachePrecision
from moopt_problems.model_merge import ModelMerge
from moopt_problems.objectives import LANGUAGE

ORDER = (ModelMerge, BitAllocation, KVCachePrecision)
"""The parts there may be, in the order in which they are applied."""


def ordered(parts: Any) -> dict[str, Problem]:
    """The parts in the order in which they are applied; refused if they cannot be parts together."""
    good = isinstance(parts, Mapping) and all(isinstance(name, str) and name and "/" not in name for name in parts)
    if not good or len(parts) < 2:
        raise ProblemError(
            f"Got parts={parts!r}; expected two problems or more by names without a slash, such as "
            "{'bits': ..., 'kv': ...}."
        )
    for name, part in parts.items():
        if not isinstance(part, ORDER):
            kinds = ", ".join(kind.__name__ for kind in ORDER)
            raise ProblemError(f"The part {name!r} is a {type(part).__name__}; expected one of {kinds}.")
        if isinstance(part, BitAllocation) and part.quantizer.calibrated:
            raise ProblemError(
                f"The part {name!r} quantizes by {part.quantizer.name}, which looks at a model's activations: those of "
                "a merge are others each time. Take 'rtn', 'rtn-symmetric' or 'hqq'."
            )
        metrics = (*getattr(part, "finalist_metrics", ()), *getattr(part, "metrics", ()))
        if late := [metric.name for metric in metrics if metric.when == "finalists"]:
            raise ProblemError(
                f"The part {name!r} has the metric {late[0]!r} for finalists, which Joint does not measure; say "
                "when='every', or leave it out."
            )
        if timed := [o.name for o in part.objectives if o.name in ("decode_ms", "prefill_ms")]:
            raise ProblemError(
                f"The part {name!r} has the objective {timed[0]}, which Joint does not measure; leave it out."
            )
    if any(sum(isinstance(part, kind) for part in parts.values()) > 1 for kind in ORDER):
        given = ", ".join(type(part).__name__ for part in parts.values())
        raise ProblemError(f"Got two parts of one kind: {given}; give one of each.")
    return {name: part for kind in ORDER for name, part in parts.items() if isinstance(part, kind)}


def one_model(parts: Mapping[str, Problem]) -> str:
    """The model that all parts are of; of a merge its base, or its first model."""
    named = {}
    for name, part in parts.items():
        if isinstance(part, ModelMerge):
            if part.architecture is not None:
                raise ProblemError(f"The part {name!r} merges networks of your own; Joint needs language models.")
            named[name] = part.base or next(iter(part.models.values()))
        else:
            named[name] = cast(BitAllocation, part).model
    if not models.generates(models.load_config(next(iter(named.values())))):
        raise ProblemError(f"{next(iter(named.values()))} generates no text; Joint needs language models.")
    first = next(iter(named))
    for name, model in named.items():
        if models.location(model) != models.location(named[first]):
            raise ProblemError(
                f"The part {name!r} is of {model} and {first!r} of {named[first]}; expected one model. Of a merge that "
                "is its base, or its first model."
            )
    return named[first]


def check_teacher(teacher: Any, model: str) -> None:
    """Refuse somebody to compare with who has other tokens."""
    if not isinstance(teacher, str) or not teacher:
        raise ProblemError(f"Got teacher={teacher!r}; expected a model's name, folder or id.")
    theirs, ours = (models.load_config(each).vocab_size for each in (teacher, model))
    if theirs != ours:
        raise ProblemError(
            f"The teacher {teacher} has {theirs} tokens and {model} {ours}; kl compares models of one vocabulary."
        )


def union(parts: Mapping[str, Problem]) -> list[Objective]:
    """All objectives of the parts; one that several have counts once."""
    found: dict[str, Objective] = {}
    for name, part in parts.items():
        for objective in part.objectives:
            if found.setdefault(objective.name, objective) != objective:
                raise ProblemError(
                    f"The part {name!r} calls an objective {objective.name!r}, and another part something else; give "
                    "the task or the metric another name."
                )
        taken = {*LANGUAGE, DISTANCE}
        if bad := [task.name for task in getattr(part, "tasks", ()) if task.name in taken]:
            raise ProblemError(f"The part {name!r} calls a task {bad[0]!r}, which Joint measures itself; rename it.")
    order = [n for n in found if n not in LANGUAGE and n != DISTANCE and not found[n].known]
    order += [n for n in found if n in LANGUAGE]
    order += [n for n in found if n not in order]
    return [found[name] for name in order]
