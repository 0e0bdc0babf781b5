"""The parallel coordinates card: what every point of the front is good at, all objectives side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import plotly.graph_objects as go

from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes, evenly, logarithmic
from moopt.views.card import Card, front_table, nothing_yet

TITLE = "What each point is good at"
FEWEST = 3
"""Objectives from which a plane does not show all of them."""
MOST_LINES = 150
"""Lines that are drawn, evenly along the front; the table has them all."""


def parallel_card(history: History) -> Card | None:
    """A line for each point of the front across all objectives; None where the front's picture shows all there is."""
    if len(history.objectives) < FEWEST:
        return None
    x = axes(history).x
    sentence = (
        f"Each line is one point of the front and each upright an objective, the better end on top; its colour is "
        f"the place along {look.plain(x)}, from its better end on: lines that cross between two uprights trade one for "
        "the other."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    return Card(TITLE, sentence, front_table(history, history.objectives), _figure(history))


def _figure(history: History) -> go.Figure:
    """Lines in an ordinary plot: plotly's own parallel coordinates need WebGL, which not every browser has."""
    objectives, front = history.objectives, history.front()
    shown = evenly(front, MOST_LINES)
    uprights = [_Upright.of(objective, [trial.values[objective.name] for trial in front]) for objective in objectives]
    figure = go.Figure()
    for trial, colour in zip(shown, look.ramp(len(shown), look.THIN), strict=True):
        heights = [
            upright.height(trial.values[objective.name])
            for upright, objective in zip(uprights, objectives, strict=True)
        ]
        figure.add_scatter(
            x=list(range(len(heights))), y=heights, mode="lines+markers", line={"color": colour, "width": 1.5},
            marker={"size": 5}, opacity=0.8, hovertext=look.hover(history, trial), hoverinfo="text", showlegend=False,
            customdata=[trial.number] * len(heights),
        )  # fmt: skip
    for place, (upright, objective) in enumerate(zip(uprights, objectives, strict=True)):
        figure.add_shape(x0=place, x1=place, y0=0, y1=1, line={"color": look.DOMINATED, "width": 1}, layer="below")
        for height, value in upright.ticks():
            figure.add_annotation(
                x=place, y=height, text=look.number(value, digits=3), xshift=-6, xanchor="right", showarrow=False
            )
        figure.add_annotation(
            x=place, y=1.06, text=f"<b>{escape(objective.label)}</b><br>{look.better(objective)} is better",
            yanchor="bottom", showarrow=False,
        )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.35, len(objectives) - 0.75])
    figure.update_yaxes(visible=False, range=[-0.05, 1.25])
    meta = {"uprights": [{"name": o.name, **u._asdict()} for o, u in zip(objectives, uprights, strict=True)]}
    figure.update_layout(height=420, margin={"l": 8, "r": 8, "t": 8, "b": 8}, meta=meta)
    return figure


class _Upright(NamedTuple):
    """An objective's axis from its worse end, 0, to its better one, 1; logarithmic over more than a decade."""

    worse: float
    better: float
    logs: bool

    @classmethod
    def of(cls, objective: Objective, values: Sequence[float]) -> _Upright:
        ends = (min(values), max(values)) if objective.direction == "max" else (max(values), min(values))
        logs = logarithmic(values)
        worse, better = (math.log10(end) if logs else end for end in ends)
        return cls(worse, better, logs)

    def height(self, value: float) -> float:
        """Where a value is; in the middle if all are equal."""
        placed = math.log10(value) if self.logs else value
        return 0.5 if self.worse == self.better else (placed - self.worse) / (self.better - self.worse)

    def ticks(self) -> list[tuple[float, float]]:
        """Heights and the values there."""
        heights = [0.5] if self.worse == self.better else [0.0, 0.25, 0.5, 0.75, 1.0]
        values = [self.worse + height * (self.better - self.worse) for height in heights]
        return [(h, 10**v if self.logs else v) for h, v in zip(heights, values, strict=True)]
