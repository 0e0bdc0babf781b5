"""A study in a few plain sentences: what was searched, what the axes mean, what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes
from moopt.views.card import nothing_yet
from moopt.views.uniform import findings

__all__ = ["findings", "lines"]


def lines(history: History) -> list[str]:
    """Two or three sentences for someone who has never seen the study."""
    finished = sum(trial.state != "running" for trial in history.trials)
    wanted = _listed([_wanted(objective) for objective in history.objectives])
    first = f"{_searcher(history)} {finished} {'candidate' if finished == 1 else 'candidates'}{_decided(history)} in search of {wanted}."
    if reason := nothing_yet(history):
        return [first, reason]
    return [first, _front(history)]


def _front(history: History) -> str:
    front, places = history.front(), axes(history)
    if places.y is None:
        return f"The best has {places.x.name} {look.amount(front[0].values[places.x.name], places.x.unit)} (trial {front[0].number})."
    spans = [_span([t.values[o.name] for t in front], o) for o in history.objectives]
    few = f"{len(front)} of them are" if len(front) > 1 else "One of them is"
    return f"{few} on the front, the best trade-offs found: {_listed(spans)}."


def _span(values: Sequence[float], objective: Objective) -> str:
    low, high = look.number(min(values)), look.number(max(values))
    span = low if low == high else f"{low} to {high}"
    return f"{objective.name} {span} {objective.unit}".rstrip()


def _wanted(objective: Objective) -> str:
    return f"{'low' if objective.direction == 'min' else 'high'} {objective.name}" + (
        f" (in {objective.unit})" if objective.unit and objective.unit.lower() not in objective.name.lower().split("_") else ""
    )


def _searcher(history: History) -> str:
    settings = history.meta.get("identity", {}).get("algorithm")
    name = settings.get("algorithm") if isinstance(settings, Mapping) else settings
    return f"{name} tried" if name else "The search tried"


def _decided(history: History) -> str:
    """How many decisions a candidate is, and what they may be where that is short."""
    config: Mapping[str, Any] = history.trials[0].config if history.trials else {}
    count = len(history.meta.get("decisions") or config)
    if not count:
        return ""
    spaces = history.meta.get("identity", {}).get("space", {}).values()
    listed = {tuple(map(str, entry.get("values", ()))) for entry in spaces}
    values = listed.pop() if len(listed) == 1 else ()
    each = f", each one of {', '.join(values[:-1])} or {values[-1]}" if 1 < len(values) <= 8 else ""
    return f" of {count} {'decision' if count == 1 else 'decisions'}{each},"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
