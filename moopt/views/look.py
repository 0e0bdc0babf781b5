"""How every card looks: colours, the light and the dark template, axes, and the writing of numbers and hovers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views.axes import HELD_OUT, logarithmic

FRONT = "#3f7ae0"
UNIFORM = "#e0782f"
BASELINE = "#1f9e8f"
DOMINATED = "#8d96a6"
INFEASIBLE = "#c4526b"

ORDERED = ["#35175c", "#6a1f7d", "#a52c78", "#dc4a5f", "#f67d45", "#fdb547", "#fbe886"]
"""Dark to bright, evenly to the eye: values that have an order."""
UNORDERED = ["#3f7ae0", "#e0782f", "#1f9e8f", "#b0509f", "#d9b01c", "#7a8596", "#c4526b", "#6cb33f", "#7d5fd3", "#8a5a3b"]
"""Colours of values without an order, such as the names of quantizers."""

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def _template(text: str, quiet: str, grid: str, paper: str) -> go.layout.Template:
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"color": quiet, "size": 11},
        "title": {"font": {"color": quiet, "size": 12}, "standoff": 8},
        "automargin": True,
    }
    layout = {
        "font": {"family": FONT, "size": 12, "color": text},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {"bgcolor": paper, "bordercolor": grid, "font": {"family": FONT, "size": 12, "color": text}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"color": quiet},
        },
        "coloraxis": {"colorbar": {"outlinewidth": 0, "thickness": 10, "tickfont": {"color": quiet, "size": 11}}},
        "margin": {"l": 8, "r": 12, "t": 36, "b": 8},
        "hovermode": "closest",
        "annotationdefaults": {"font": {"color": quiet, "size": 11}, "showarrow": False},
    }
    return go.layout.Template(layout=layout)


TEMPLATES = {
    "light": _template(text="#24272d", quiet="#5d6572", grid="#e4e7ec", paper="#ffffff"),
    "dark": _template(text="#e3e6eb", quiet="#9aa3b1", grid="#2b3039", paper="#1d2026"),
}
"""Text, grid and background, for whoever shows a figure to choose from."""


def ramp(n: int) -> list[str]:
    """The colours of n ordered values, dark to bright."""
    return list(sample_colorscale(ORDERED, [i / max(n - 1, 1) for i in range(n)]))


def number(value: float) -> str:
    """Four significant digits, or thousands apart: 0.0213, 88.12, 106,168,320; a dash for what is not a number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def amount(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}".rstrip()


def axis(objective: Objective, values: Iterable[float]) -> dict[str, Any]:
    """The axis of an objective: its title says which way is better; logarithmic over more than a decade."""
    better = "lower" if objective.direction == "min" else "higher"
    settings: dict[str, Any] = {"title": {"text": f"{escape(objective.label)} · {better} is better"}}
    if logarithmic(values):
        settings |= {"type": "log", "exponentformat": "none", "minorloglabels": "complete"}
    return settings


def hover(history: History, trial: Trial, also: Sequence[str] = ()) -> str:
    """What a trial's point tells: its number, its label, its figures with units, and further lines."""
    title = f"<b>trial {trial.number}</b>" + (f" {escape(trial.label)}" if trial.label else "")
    lines = [title, *map(escape, also)]
    for objective in history.objectives:
        lines.append(f"{escape(objective.name)} {escape(amount(trial.values[objective.name], objective.unit))}")
    measured = history.measures.get((trial.number, HELD_OUT))
    for objective in history.objectives:
        if measured is not None and not objective.known and objective.name in measured.values:
            value = amount(measured.values[objective.name], objective.unit)
            lines.append(f"{escape(objective.name)} {HELD_OUT} {escape(value)}")
    for constraint in history.constraints:
        value, bound = trial.values.get(constraint.name, math.nan), amount(constraint.bound, constraint.unit)
        lines.append(f"{escape(constraint.name)} {number(value)} (bound {escape(bound)})")
    return "<br>".join(lines)
