"""The parallel coordinates card: what every point of the front is good at, all objectives side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes, logarithmic
from moopt.views.card import Card, nothing_yet

TITLE = "What each point is good at"
FEWEST = 3
"""Objectives from which a plane does not show all of them."""


def parallel_card(history: History) -> Card | None:
    """A line for each point of the front across all objectives; None where the front's picture shows all there is."""
    if len(history.objectives) < FEWEST:
        return None
    x = axes(history).x
    sentence = (
        f"Each line is one point of the front and each upright an objective, the better end on top; its colour is "
        f"{look.plain(x)}: lines that cross between two uprights trade one for the other. Drag along an upright to "
        "keep only the lines that pass there."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    front = history.front()
    table = history.frame(front)[[o.name for o in history.objectives]]
    table = table.rename(columns={o.name: o.label for o in history.objectives}).reset_index(names="trial")
    return Card(TITLE, sentence, table, _figure(history))


def _figure(history: History) -> go.Figure:
    front, objectives, x = history.front(), history.objectives, axes(history).x
    uprights = [_upright(objective, [trial.values[objective.name] for trial in front]) for objective in objectives]
    colours = [trial.values[x.name] for trial in front]
    figure = go.Figure(
        go.Parcoords(dimensions=uprights, line={"color": colours, "coloraxis": "coloraxis"}, labelside="bottom")
    )
    figure.update_layout(
        coloraxis={"colorscale": look.ORDERED, "colorbar": {"title": {"text": escape(x.label), "side": "right"}}},
        height=380, margin={"l": 60, "r": 30, "t": 24, "b": 40},
    )  # fmt: skip
    return figure


def _upright(objective: Objective, values: Sequence[float]) -> dict[str, Any]:
    """An objective's axis, logarithmic over more than a decade."""
    logs = logarithmic(values)
    shown = np.log10(values) if logs else np.array(values, dtype=float)
    low, high = float(shown.min()), float(shown.max())
    ends = [low, high] if low < high else [low - 0.5, high + 0.5]
    ticks = np.linspace(ends[0], ends[1], 5)
    named = [look.number(10**tick if logs else tick, digits=3) for tick in ticks.tolist()]
    return {
        "label": escape(objective.label),
        "values": shown.tolist(),
        "range": ends if objective.direction == "max" else ends[::-1],
        "tickvals": ticks.tolist(),
        "ticktext": named,
    }
