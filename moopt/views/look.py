"""How every card looks: colours, the light and the dark template, axes, and the writing of numbers and hovers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views.axes import HELD_OUT, held_out, logarithmic

FRONT = "#3f7ae0"
UNIFORM = "#e0782f"
BASELINE = "#1f9e8f"
DOMINATED = "#8d96a6"
INFEASIBLE = "#c4526b"

ORDERED = ["#3d1b69", "#6a1f7d", "#a52c78", "#dc4a5f", "#f67d45", "#fdb547", "#fbe886"]
"""Dark to bright, evenly to the eye: values that have an order."""
THIN = ["#3f7ae0", "#8a63d8", "#c2559f", "#d9603f"]
"""Values that have an order, where they colour thin lines: each is seen on light and on dark paper."""
UNORDERED = [
    "#3f7ae0",
    "#e0782f",
    "#1f9e8f",
    "#b0509f",
    "#d9b01c",
    "#7a8596",
    "#c4526b",
    "#6cb33f",
    "#7d5fd3",
    "#8a5a3b",
]
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
        "ticklabelstandoff": 4,
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
        "coloraxis": {
            "colorbar": {
                "outlinewidth": 0,
                "thickness": 10,
                "tickfont": {"color": quiet, "size": 11},
                "title": {"font": {"color": quiet, "size": 12}},
            }
        },
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


def ramp(n: int, colours: list[str] = ORDERED) -> list[str]:
    """The colours of n ordered values, from the first of some colours to the last."""
    return list(sample_colorscale(colours, [i / max(n - 1, 1) for i in range(n)]))


def key(name: str) -> dict[str, Any]:
    """What stands in a legend for points whose colours are their values."""
    marker = {"size": 11, "color": ORDERED[2], "line": {"width": 1, "color": FRONT}}
    shown = {"x": [None], "y": [None], "mode": "markers", "name": name, "marker": marker, "hoverinfo": "skip"}
    return {**shown, "legendgroup": name}  # a click on it hides the points of that group


def number(value: float, digits: int = 4) -> str:
    """Significant digits, or thousands apart: 0.0213, 88.12, 106,168,320; a dash for what is not a number."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e15 else f"{value:.{digits}g}"


def amount(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}".rstrip()


def plain(objective: Objective) -> str:
    """The name as a sentence says it: without the unit it may end in, "size" for `size_mb` in MB."""
    return objective.name.removesuffix(f"_{objective.unit.lower()}").replace("_", " ")


def better(objective: Objective) -> str:
    """Which way is better: "lower" or "higher"."""
    return "lower" if objective.direction == "min" else "higher"


def axis(objective: Objective, values: Iterable[float]) -> dict[str, Any]:
    """The axis of an objective: its title says which way is better; logarithmic over more than a decade."""
    settings: dict[str, Any] = {"title": {"text": f"{escape(objective.label)} · {better(objective)} is better"}}
    found = list(values)
    if logarithmic(found):
        span, thousands = math.log10(max(found) / min(found)), max(found) >= 1e4 and min(found) >= 1
        settings |= {"type": "log", "dtick": "D2" if span < 5 else 1, "minorloglabels": "complete"}
        settings |= {"tickformat": "~s" if thousands else "~g", "exponentformat": "none"}
    return settings


def hover(history: History, trial: Trial) -> str:
    """What a trial's point tells: its number, its label and its figures with units."""
    title = f"<b>trial {trial.number}</b>" + (f" {escape(trial.label)}" if trial.label else "")
    lines = [title]
    for objective in history.objectives:
        lines.append(f"{escape(objective.name)} {escape(amount(trial.values[objective.name], objective.unit))}")
    for objective in (o for o in history.objectives if not o.known):
        if math.isfinite(value := held_out(history, trial, objective)):
            lines.append(f"{escape(objective.name)} {HELD_OUT} {escape(amount(value, objective.unit))}")
    for constraint in history.constraints:
        bound = escape(amount(constraint.bound, constraint.unit))
        found = number(trial.values.get(constraint.name, math.nan))
        lines.append(f"{escape(constraint.name)} {found} (bound {bound})")
    return "<br>".join(lines)
