"""What the dashboard's pages are told, as JSON: nothing in it is HTML, and nothing is not a number that JSON has."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from moopt.dashboard.library import Read
from moopt.errors import StudyError
from moopt.exporting import figures, names
from moopt.history import History, Trial
from moopt.views import Card, look, summary, views
from moopt.views.decisions import layout

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
        "cards": list(views(history)),
    }


def card(found: Card | None) -> dict[str, Any]:
    """A card's picture and the beginning of its table; nothing where there is none."""
    if found is None:
        return {}
    return {
        "title": found.title,
        "sentence": found.sentence,
        "reason": found.reason,
        "figure": None if found.figure is None else json.loads(found.figure.to_json()),
        "table": table(found.table),
    }


def table(found: pd.DataFrame) -> dict[str, Any]:
    """A table's columns and rows."""
    rows = [[plain(value) for value in row] for row in found.head(ROWS).itertuples(index=False)]
    return {"columns": [str(name) for name in found.columns], "rows": rows, "of": len(found)}


def trial(read: Read, number: int) -> dict[str, Any]:
    """A candidate's page.

    Raises:
        KeyError: there is no such trial.
    """
    history = read.history
    if not 0 <= number < len(history.trials):
        raise KeyError(number)
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
    """The baseline whose known figures are nearest, and how much better each figure is than its."""
    known = [o for o in history.objectives if o.known] or list(history.objectives[:1])
    others = [t for t in history.baselines() if t.number != found.number]
    if not others:
        return None

    def apart(other: Trial) -> float:
        return sum(abs(other.values[o.name] - found.values[o.name]) for o in known)

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
        "shell": f"moopt export STUDY --trial {found.number} --format FORMAT --out served",
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


def _knee(history: History) -> int | None:
    try:
        return history.knee().number
    except StudyError:
        return None
