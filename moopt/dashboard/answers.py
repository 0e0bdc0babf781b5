"""What the dashboard's pages are told, as JSON: nothing in it is HTML, and nothing is not a number that JSON has."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt import views
from moopt.dashboard.library import Missing, Read
from moopt.errors import StudyError
from moopt.exporting import figures, names
from moopt.history import History, Trial
from moopt.problem import Constraint, is_finite
from moopt.views import Card, look, summary
from moopt.views.decisions import layout
from moopt.views.shipping import export_command

ROWS = 500
"""Rows of a table that are sent, from its beginning."""


def study(read: Read) -> dict[str, Any]:
    """A study's page without its pictures."""
    history = read.history
    return {
        "name": history.name,
        "mark": read.mark,
        "running": read.running,
        "lead": summary.lines(history),
        "findings": summary.findings(history),
        "knee": _knee(history),
        "cards": list(views.views(history)),
        "figures": [{"name": o.name, "label": o.label} for o in history.objectives]
        + [{"name": c.name, "label": f"{c.name} [{c.unit}]" if c.unit else c.name} for c in bounded(history)],
    }


def bounded(history: History) -> list[Constraint]:
    """The constraints on what is no objective."""
    names = {o.name for o in history.objectives}
    return [c for c in history.constraints if c.name not in names]


def within(read: Read, ranges: Any) -> dict[str, Any]:
    """The complete trials whose figures are in ranges.

    Args:
        read: The study.
        ranges: By the name of an objective or a constraint, the least and the greatest value; None for no bound.

    Raises:
        StudyError: that is no such mapping.
    """
    history = read.history
    names = {o.name for o in history.objectives} | {c.name for c in history.constraints}
    if not isinstance(ranges, dict) or not ranges.keys() <= names or not all(map(_is_range, ranges.values())):
        raise StudyError(f"The ranges are {ranges!r}; expected two bounds for some of {', '.join(sorted(names))}.")

    def holds(trial: Trial) -> bool:
        found = ((trial.values.get(name, math.nan), *bounds) for name, bounds in ranges.items())
        return all((low is None or value >= low) and (high is None or value <= high) for value, low, high in found)

    front = history.front()
    chosen = [t.number for t in history.trials if t.state == "complete" and holds(t)]
    return {"trials": chosen, "on_front": sum(map(holds, front)), "front": len(front)}


def _is_range(bounds: Any) -> bool:
    return isinstance(bounds, list) and len(bounds) == 2 and all(b is None or is_finite(b) for b in bounds)


def card(found: Card | None) -> dict[str, Any]:
    """A card's picture and the beginning of its table; nothing where there is none."""
    if found is None:
        return {}
    return {
        "title": found.title,
        "sentence": found.sentence,
        "reason": found.reason,
        "figure": None if found.figure is None else figure(found.figure),
        "table": table(found.table),
    }


def comparison(read: Sequence[tuple[str, Read]], known: str = "") -> dict[str, Any]:
    """Several studies, each with the storage it is in, and the cards that show them side by side.

    Args:
        read: The storages and the studies.
        known: The mark of the answer that a browser has: where nothing is new, it gets no more than that mark.

    Raises:
        StudyError: they cannot be compared.
    """
    if len(read) < 2:
        raise StudyError("Name two studies or more to compare: tick them in the list of studies.")
    mark = " ".join(str(each.mark) for _, each in read)
    if mark == known:
        return {"mark": mark}
    found = views.comparison([each.history for _, each in read])
    named = [{"place": place, "name": each.history.name} for place, each in read]
    return {"mark": mark, "studies": named, "cards": [card(each) for each in found]}


def figure(found: go.Figure) -> Any:
    """A figure's data and layout, its arrays as lists: plotly packs them in a text that changes as a whole."""
    return _unpacked(json.loads(found.to_json()))


def table(found: pd.DataFrame) -> dict[str, Any]:
    """A table's columns and rows."""
    rows = [[plain(value) for value in row] for row in found.head(ROWS).itertuples(index=False)]
    return {"columns": [str(name) for name in found.columns], "rows": rows, "of": len(found)}


def trial(read: Read, number: int) -> dict[str, Any]:
    """A candidate's page.

    Raises:
        Missing: there is no such trial.
    """
    history = read.history
    if not 0 <= number < len(history.trials):
        raise Missing(number)
    found = history.trials[number]
    told: dict[str, Any] = {
        "number": number,
        "label": found.label or "",
        "state": found.state,
        "feasible": found.feasible,
        "on_front": any(t.number == number for t in history.front()),
        "failure": None if found.failure is None else found.failure.message,
        "seconds": plain(found.seconds),
        "tokens": found.tokens,
        "decisions": decisions(history, found),
        "figures": [],
        "constraints": [],
        "nearest": None,
        "commands": {},
    }
    if found.state == "complete":
        told["figures"] = [
            {"name": name, "unit": each.get("unit", ""), **{k: plain(v) for k, v in each.items() if k != "unit"}}
            for name, each in figures(history, found).items()
        ]
        told["constraints"] = [
            {"name": c.name, "bound": c.bound, "unit": c.unit, "value": plain(found.values.get(c.name, math.nan)),
             "holds": found.violations.get(c.name, 0.0) <= 0}
            for c in history.constraints
        ]  # fmt: skip
        told["nearest"] = nearest(history, found)
        told["commands"] = commands(history, found)
    return told


def decisions(history: History, found: Trial) -> list[dict[str, Any]]:
    """What was decided, row by row and column by column, as the problem draws it."""
    return [
        {"row": line["row"], "column": line["column"], "label": line.get("label", ""),
         "value": plain(found.config.get(line["name"]))}
        for line in layout(history)
    ]  # fmt: skip


def nearest(history: History, found: Trial) -> dict[str, Any] | None:
    """The baseline whose known figures are nearest, in relation to their size, and how much better each figure is."""
    known = [o for o in history.objectives if o.known] or list(history.objectives[:1])
    others = [t for t in history.baselines() if t.number != found.number]
    if not others:
        return None

    def apart(other: Trial) -> float:
        pairs = ((other.values[o.name], found.values[o.name]) for o in known)
        return sum(abs(theirs - own) / (abs(theirs) + abs(own) or 1.0) for theirs, own in pairs)

    best = min(others, key=apart)
    compared = []
    for objective in history.objectives:
        own, theirs = found.values[objective.name], best.values[objective.name]
        gain = objective.sign * (theirs - own) / abs(theirs) if theirs else math.nan
        compared.append({"name": look.plain(objective), "unit": objective.unit, "own": plain(own),
                         "theirs": plain(theirs), "gain": plain(gain)})  # fmt: skip
    return {"label": best.label, "number": best.number, "compared": compared}


def commands(history: History, found: Trial) -> dict[str, Any]:
    """What to run to have the candidate, in a shell and in Python; the study's own file stands for STUDY."""
    return {
        "formats": names(),
        "shell": export_command(found),
        "python": f'study.export({found.number}, "FORMAT", "served")',
    }


def plain(value: Any) -> Any:
    """A value that JSON has: what is not finite is None, what is no number or text is its text."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    return str(value)


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if "bdata" in value:
            shape = [int(n) for n in str(value["shape"]).split(",")] if "shape" in value else -1
            array = np.frombuffer(b64decode(value["bdata"]), np.dtype(value["dtype"])).reshape(shape)
            return _without_nan(array.tolist())
        return {key: _unpacked(member) for key, member in value.items()}
    return [_unpacked(member) for member in value] if isinstance(value, list) else value


def _without_nan(value: Any) -> Any:
    return [_without_nan(member) for member in value] if isinstance(value, list) else plain(value)


def _knee(history: History) -> int | None:
    try:
        return history.knee().number
    except StudyError:
        return None
