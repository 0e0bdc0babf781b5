"""The pairs card: the front from every side, one small picture for each pair of objectives."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes, evenly, is_uniform
from moopt.views.card import Card, front_table, nothing_yet

TITLE = "Every pair of objectives"
FEWEST = 3
"""Objectives from which the front's own picture does not show all pairs."""
MOST_DRAWN = 300
"""Points of the front that are drawn in each picture, evenly along it; the table has them all."""


def pairs_card(history: History) -> Card | None:
    """The lower triangle of all pairs; None where there is one pair or none."""
    if len(history.objectives) < FEWEST:
        return None
    x = axes(history).x
    sentence = (
        f"Each picture shows the front's points by two of the objectives, the colour in all of them is "
        f"{look.plain(x)}, and the same point is marked in all when it is selected: a narrow band says that two "
        "objectives go together or against one another, a cloud that they can be had independently."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    return Card(TITLE, sentence, front_table(history, history.objectives), _figure(history))


def _figure(history: History) -> go.Figure:
    places = axes(history)
    objectives = [places.x, *(o for o in history.objectives if o is not places.x)]
    front, uniform = evenly(history.front(), MOST_DRAWN), [t for t in history.baselines() if is_uniform(t)]
    side = len(objectives) - 1
    figure = make_subplots(
        rows=side, cols=side, shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.03, horizontal_spacing=0.03,
        specs=[[{} if col <= row else None for col in range(side)] for row in range(side)],
    )  # fmt: skip
    hovers = {trial.number: look.hover(history, trial) for trial in (*front, *uniform)}
    marker = {"size": 6, "color": [t.values[places.x.name] for t in front], "coloraxis": "coloraxis"}
    marker["line"] = {"width": 0.7, "color": look.FRONT}
    diamond = {"symbol": "diamond-open", "size": 8, "color": look.UNIFORM}
    for row, y in enumerate(objectives[1:], 1):
        for col, x in enumerate(objectives[:row], 1):
            first = row == col == 1
            for trials, name, style in ((front, "front", marker), (uniform, "uniform", diamond)):
                if trials:
                    figure.add_scatter(
                        **_at(trials, x, y, hovers), name=name, legendgroup=name, marker=style, mode="markers",
                        showlegend=first and name != "front", row=row, col=col,
                    )  # fmt: skip
            figure.update_xaxes(**_axis(front, x, named=row == side), row=row, col=col)
            figure.update_yaxes(**_axis(front, y, named=col == 1), row=row, col=col)
    figure.add_scatter(**look.key("front"), row=1, col=1)
    bar = {"title": {"text": escape(places.x.label), "side": "right"}, "len": 0.9}
    figure.update_layout(
        showlegend=True, coloraxis={"colorscale": look.ORDERED, "colorbar": bar}, height=80 + 210 * side
    )
    return figure


def _at(trials: list[Trial], x: Objective, y: Objective, hovers: dict[int, str]) -> dict[str, Any]:
    return {
        "x": [t.values[x.name] for t in trials],
        "y": [t.values[y.name] for t in trials],
        "customdata": [t.number for t in trials],
        "hovertext": [hovers[t.number] for t in trials],
        "hoverinfo": "text",
    }


def _axis(front: list[Trial], objective: Objective, *, named: bool) -> dict[str, Any]:
    """The axis of the front alone; its name stands at the triangle's edge."""
    settings = look.axis(objective, [trial.values[objective.name] for trial in front])
    if settings.get("type") == "log":  # a label each few decades: the pictures are small
        values = [trial.values[objective.name] for trial in front]
        settings |= {"dtick": max(1, round(math.log10(max(values) / min(values)) / 3)), "minorloglabels": "none"}
    return settings | {"title": {"text": escape(objective.label) if named else ""}, "nticks": 5}
