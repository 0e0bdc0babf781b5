"""The solid card: the front of three objectives in space, seen from two corners. Plain lines and points, no WebGL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt.history import History, Trial
from moopt.pareto import FloatArray
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import Axes, axes, evenly, is_uniform, logarithmic
from moopt.views.card import Card, front_table, nothing_yet

TITLE = "The front in three dimensions"
TURNS, TILT = (-32.0, 58.0), 24.0
"""From where it is seen, in degrees: around the upright axis, and from above."""
MOST_DRAWN = 200
"""Points of the front that are drawn, evenly along it; the table has them all."""
GRID = np.linspace(-0.5, 0.5, 5)


def solid_card(history: History) -> Card | None:
    """The front by its first three objectives, those of the front's picture; None where there are fewer."""
    places = axes(history)
    if places.y is None or places.colour is None:
        return None
    shown = (places.x, places.colour, places.y)
    sentence = (
        f"Each point is one point of the front, standing on a thin line above its {look.plain(shown[0])} and its "
        f"{look.plain(shown[1])}, which is its colour too, at the height of its {look.plain(shown[2])}, and the same "
        "points are seen from two corners."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    return Card(TITLE, sentence, front_table(history, shown), _figure(history, places, shown))


class Edge(NamedTuple):
    """An objective's place along an edge of the cube, from -0.5 to 0.5."""

    objective: Objective
    low: float
    high: float
    logs: bool

    @classmethod
    def of(cls, objective: Objective, trials: Sequence[Trial]) -> Edge:
        values = [v for t in trials if math.isfinite(v := t.values[objective.name])] or [0.0]
        logs = logarithmic(values)
        low, high = (math.log10(end) if logs else end for end in (min(values), max(values)))
        return cls(objective, low, high, logs)

    def places(self, trials: Sequence[Trial]) -> FloatArray:
        """Where trials are, [n]; in the middle if all are equal."""
        values = np.array([t.values[self.objective.name] for t in trials], dtype=float)
        values = np.log10(values) if self.logs else values
        found: FloatArray = (values - self.low) / ((self.high - self.low) or np.inf) - 0.5 * (self.high > self.low)
        return found

    def ends(self) -> list[str]:
        """The least and the greatest value, as text."""
        return [look.number(10**end if self.logs else end, digits=3) for end in (self.low, self.high)]


def seen(points: FloatArray, turn: float) -> FloatArray:
    """Points [n, 3] in the cube as they are seen from a corner, [n, 2]: turned, then tilted, without perspective."""
    a, e = math.radians(turn), math.radians(TILT)
    right = points[:, 0] * math.cos(a) - points[:, 1] * math.sin(a)
    away = points[:, 0] * math.sin(a) + points[:, 1] * math.cos(a)
    return np.column_stack([right, points[:, 2] * math.cos(e) + away * math.sin(e)])


def _figure(history: History, places: Axes, shown: Sequence[Objective]) -> go.Figure:
    front, uniform = evenly(history.front(), MOST_DRAWN), [t for t in history.baselines() if is_uniform(t)]
    edges = [Edge.of(objective, [*front, *uniform]) for objective in shown]
    figure = make_subplots(rows=len(TURNS), cols=1, vertical_spacing=0.02)
    ring = {"size": 8, "coloraxis": "coloraxis", "line": {"width": 0.7, "color": look.FRONT}}
    ring["color"] = [t.values[shown[1].name] for t in front]
    diamond = {"symbol": "diamond-open", "size": 10, "color": look.UNIFORM, "line": {"width": 1.5}}
    for row, turn in enumerate(TURNS, 1):
        _cube(figure, turn, row)
        for trials, name, marker in ((front, "front", ring), (uniform, "uniform", diamond)):
            if trials:
                at = np.column_stack([edge.places(trials) for edge in edges])
                _stems(figure, at, turn, row)
                flat = seen(at, turn)
                figure.add_scatter(
                    x=flat[:, 0].tolist(), y=flat[:, 1].tolist(), mode="markers", name=name, legendgroup=name,
                    showlegend=row == 1 and name != "front", marker=marker, customdata=[t.number for t in trials],
                    hovertext=[look.hover(history, t) for t in trials], hoverinfo="text", row=row, col=1,
                )  # fmt: skip
        _name_edges(figure, edges, turn, row)
        figure.update_yaxes(scaleanchor=f"x{row if row > 1 else ''}", scaleratio=1, range=[-0.88, 0.8], row=row, col=1)
    figure.add_scatter(**look.key("front"), row=1, col=1)
    figure.update_xaxes(visible=False, range=[-0.95, 0.95])
    figure.update_yaxes(visible=False)
    bar: dict[str, Any] = {"title": {"text": escape(shown[1].label), "side": "top"}, "orientation": "h"}
    bar |= {"y": 0.0, "yanchor": "top", "len": 0.8}
    figure.update_layout(coloraxis={"colorscale": look.ORDERED, "colorbar": bar}, height=60 + 400 * len(TURNS))
    figure.update_layout(showlegend=True, margin={"l": 44, "t": 28})
    return figure


def _lines(figure: go.Figure, ends: FloatArray, turn: float, row: int, line: dict[str, Any]) -> None:
    """Straight lines between pairs of points, [n, 2, 3]."""
    flat = seen(ends.reshape(-1, 3), turn).reshape(-1, 2, 2)
    x, y = ([v for pair in flat[:, :, k].tolist() for v in (*pair, None)] for k in (0, 1))
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=row, col=1)


def _cube(figure: go.Figure, turn: float, row: int) -> None:
    """The floor's grid and the upright edges."""
    along = [[(g, -0.5, -0.5), (g, 0.5, -0.5)] for g in GRID] + [[(-0.5, g, -0.5), (0.5, g, -0.5)] for g in GRID]
    upright = [[(x, y, -0.5), (x, y, 0.5)] for x in (-0.5, 0.5) for y in (-0.5, 0.5)]
    _lines(figure, np.array(along + upright), turn, row, {"width": 0.6, "color": look.DOMINATED})


def _stems(figure: go.Figure, at: FloatArray, turn: float, row: int) -> None:
    """What each point stands on."""
    floor = at.copy()
    floor[:, 2] = -0.5
    _lines(figure, np.stack([floor, at], axis=1), turn, row, {"width": 0.6, "color": look.FRONT})


def _name_edges(figure: go.Figure, edges: Sequence[Edge], turn: float, row: int) -> None:
    """The objectives' names and ends, along the two near edges of the floor and the left upright one."""
    a = math.radians(turn)
    near = [-0.5 if math.cos(a) > 0 else 0.5, -0.5 if math.sin(a) > 0 else 0.5]
    corners = np.array([(x, y, 0.0) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
    left = corners[seen(corners, turn)[:, 0].argmin()]
    for k, edge in enumerate(edges):
        line = np.array([[0.0, near[0], -0.5], [near[1], 0.0, -0.5], [left[0], left[1], 0.0]][k] * 3).reshape(3, 3)
        line[:, k] = (-0.5, 0.5, 0.0)
        flat = seen(line, turn)
        outwards = "right" if k == 2 or flat[2, 0] < 0 else "left"
        for (x, y), text in zip(flat.tolist(), (*edge.ends(), f"<b>{escape(edge.objective.label)}</b>"), strict=True):
            figure.add_annotation(
                x=x, y=y, text=text, showarrow=False, xanchor=outwards, yanchor="middle" if k == 2 else "top",
                xshift=-8 if outwards == "right" else 8, yshift=0 if k == 2 else -2, row=row, col=1,
            )  # fmt: skip
