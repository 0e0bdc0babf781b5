"""A study in a few plain sentences: what was searched, what the axes mean, what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes
from moopt.views.card import nothing_yet
from moopt.views.uniform import findings

__all__ = ["findings", "lines"]


def lines(history: History) -> list[str]:
    """Three sentences for someone who has never seen the study; fewer before it has found anything.

    A fourth says what the rule of `moopt.never_worse` did, where the problem has validation data.
    """
    if not history.trials:
        return [nothing_yet(history)]
    objectives, tried = history.objectives, _count(len(history.trials), "candidate")
    wanted = _listed([f"{'low' if o.direction == 'min' else 'high'} {look.plain(o)}" for o in objectives])
    first = f"{_candidate(history)}{_searcher(history)} tried {tried} in search of {wanted}."
    verdict = history.verdict()
    rest = [] if verdict is None else [str(verdict)]
    return [first, _meaning(objectives), nothing_yet(history) or _front(history), *rest]


def _meaning(objectives: Sequence[Objective]) -> str:
    """What the axes mean."""
    parts = []
    for how, known in (("measured", False), ("known exactly", True)):
        said = [f"{_with_unit(o)}, {look.better(o)} is better" for o in objectives if o.known is known]
        parts += [f"{how}: {' and '.join(said)}"] if said else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _with_unit(objective: Objective) -> str:
    return f"{look.plain(objective)} in {objective.unit}" if objective.unit else look.plain(objective)


def _front(history: History) -> str:
    front, places = history.front(), axes(history)
    if places.y is None:
        value = look.amount(front[0].values[places.x.name], places.x.unit)
        return f"The best has {look.plain(places.x)} {value} (trial {front[0].number})."
    spans = [_span([t.values[o.name] for t in front], o) for o in history.objectives]
    points = "1 candidate is" if len(front) == 1 else f"{len(front):,} candidates are"
    return f"{points} on the front, the best trade-offs found: {_listed(spans)}."


def _span(values: Sequence[float], objective: Objective) -> str:
    low, high = look.number(min(values), digits=3), look.number(max(values), digits=3)
    span = low if low == high else f"{low} to {high}"
    return f"{look.plain(objective)} {span} {objective.unit}".rstrip()


def _searcher(history: History) -> str:
    settings = history.meta.get("identity", {}).get("algorithm")
    return str((settings.get("algorithm") if isinstance(settings, Mapping) else settings) or "The search")


def _candidate(history: History) -> str:
    """What a candidate is: how many decisions, and what they may be where that is short."""
    count = len(history.meta.get("decisions") or history.trials[0].config)
    if not count:
        return ""
    spaces = history.meta.get("identity", {}).get("space", {}).values()
    listed = {tuple(map(str, entry.get("values", ()))) for entry in spaces}
    values = listed.pop() if len(listed) == 1 else ()
    each = f", each one of {', '.join(values[:-1])} or {values[-1]}" if 1 < len(values) <= 8 else ""
    return f"A candidate is {_count(count, 'decision')}{each}. "


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + f" and {parts[-1]}"
