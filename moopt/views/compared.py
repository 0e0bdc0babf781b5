"""Cards of several studies beside one another: fronts, progress, attainment, and who dominates whom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt import pareto
from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.attainment import attainment_card
from moopt.views.axes import Axes, axes, evenly
from moopt.views.card import Card
from moopt.views.hypervolume import COSTS, costs, hypervolume_data, reach, steps, told
from moopt.views.rivals import Rival, Rivals, rivals

MOST_DRAWN = 500
"""Points of a front that are drawn, evenly along it."""


def comparison(histories: Sequence[History]) -> list[Card]:
    """The cards that compare studies of the same objectives: other algorithms, or the same with other seeds.

    Studies that differ in their seed alone have one colour, and their attainment is drawn.

    Raises:
        StudyMismatch: their objectives differ; says which.
        StudyError: there is no study to compare.
    """
    found = rivals(histories)
    return [fronts_card(found), progress_card(found), attainment_card(found), dominance_card(found), sums_card(found)]


def fronts_card(found: Rivals) -> Card:
    """All fronts in one picture, by the first two objectives; a bar for each study's best where there is one."""
    title = "The fronts"
    sentence = (
        "Each line joins the front of one study, with one colour for those that differ in their seed alone: where a "
        "line is nearer to the better corner, that study has found better trade-offs there."
    )
    if reason := found.nothing:
        return Card(title, sentence, reason=reason)
    rows = [
        {"study": rival.label, "trial": trial.number, **{o.label: trial.values[o.name] for o in found.objectives}}
        for rival in found.members
        for trial in rival.front
    ]
    places = axes(found.members[0].history)
    if places.y is None:
        return Card(title, sentence.replace("line", "bar"), pd.DataFrame(rows), _bars(found, places.x))
    return Card(title, sentence, pd.DataFrame(rows), _lines(found, places, places.y))


def _bars(found: Rivals, x: Objective) -> go.Figure:
    best = [rival for rival in found.members if rival.front]
    figure = go.Figure()
    figure.add_bar(
        x=[rival.front[0].values[x.name] for rival in best], y=[escape(rival.label) for rival in best],
        orientation="h", marker={"color": look.FRONT, "cornerradius": 3},
    )  # fmt: skip
    figure.update_layout(xaxis=look.axis(x, []), yaxis={"autorange": "reversed"}, bargap=0.35)
    figure.update_layout(height=100 + 34 * len(best), margin={"t": 8})
    return figure


def _lines(found: Rivals, places: Axes, y: Objective) -> go.Figure:
    figure = go.Figure()
    for rival, first in found.in_groups():
        shown = evenly(rival.front, MOST_DRAWN)
        figure.add_scatter(
            x=[t.values[places.x.name] for t in shown], y=[t.values[y.name] for t in shown],
            mode="lines+markers" if places.colour is None else "markers", name=escape(rival.group),
            legendgroup=rival.group, showlegend=first, line={"shape": "hv", "width": 1.5, "color": rival.colour},
            marker={"size": 6, "color": rival.colour}, hoverinfo="text",
            hovertext=[f"<b>{escape(rival.label)}</b><br>{look.hover(rival.history, t)}" for t in shown],
        )  # fmt: skip
    every = [trial for rival in found.members for trial in rival.front]
    figure.update_layout(
        height=500, showlegend=True,
        xaxis=look.axis(places.x, [t.values[places.x.name] for t in every]),
        yaxis=look.axis(y, [t.values[y.name] for t in every]),
    )  # fmt: skip
    return figure


def progress_card(found: Rivals) -> Card:
    """The hypervolumes over what the studies have cost, all up to the same reference point."""
    sentence = (
        "Each line is the hypervolume of one study over what it has cost, up to a reference point that all share: the "
        "line that is higher at the cost one can pay is the search to take."
    )
    title = "Progress, side by side"
    if reason := found.nothing:
        return Card(title, sentence, reason=reason)
    tables = {rival.label: hypervolume_data(rival.history, found.corner) for rival in found.members}
    shown = costs(list(tables.values()))
    figure = make_subplots(rows=len(shown), cols=1, vertical_spacing=0.26 / len(shown))
    for row, cost in enumerate(shown, 1):
        for rival, first in found.in_groups():
            if tables[rival.label].empty:
                continue
            drawn = steps(tables[rival.label])
            figure.add_scatter(
                x=drawn[cost].tolist(), y=drawn["hypervolume"].tolist(), mode="lines", name=escape(rival.group),
                legendgroup=rival.group, showlegend=first and row == 1, hoverinfo="text",
                line={"shape": "hv", "width": 1.5, "color": rival.colour},
                hovertext=[f"<b>{escape(rival.label)}</b><br>{told(each)}" for each in drawn.to_dict("records")],
                row=row, col=1,
            )  # fmt: skip
        figure.update_xaxes(title={"text": COSTS[cost]}, rangemode="tozero", row=row, col=1)
    figure.update_yaxes(title={"text": "hypervolume"}, **reach(list(tables.values())))
    figure.update_layout(height=80 + 250 * len(shown), showlegend=True)
    listed = [table.drop(columns="baseline").assign(study=label) for label, table in tables.items() if not table.empty]
    table = pd.concat([steps(each) for each in listed], ignore_index=True)
    return Card(title, sentence, table[["study", *table.columns.drop("study")]], figure)


def dominance_card(found: Rivals) -> Card:
    """Of each study's front, the share that each other's dominates."""
    sentence = (
        "Each cell is the share of the column's front that some point of the line's front dominates, which is the "
        "C-metric: a study whose line is high and whose column is low has found the better front."
    )
    title = "Who dominates whom"
    if reason := found.nothing:
        return Card(title, sentence, reason=reason)
    if len(found.members) < 2:
        return Card(title, sentence, reason="There is one study; expected two or more.")
    shares = np.array([[dominated_share(a.points, b.points) for b in found.members] for a in found.members])
    names = [rival.label for rival in found.members]
    table = pd.DataFrame(shares, columns=[f"of {name}" for name in names])
    table.insert(0, "dominates", names)
    ticks = [escape(name if len(name) <= 24 else f"{name[:23]}…") for name in names]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if a == b or np.isnan(v) else v for b, v in enumerate(line)] for a, line in enumerate(shares)],
        x=list(range(len(names))), y=list(range(len(names))), coloraxis="coloraxis", xgap=1, ygap=1, hoverinfo="text",
        text=[["" if a == b else f"{v:.0%}" for b, v in enumerate(line)] for a, line in enumerate(shares)],
        texttemplate="%{text}" if len(names) <= 12 else "",
        hovertext=[[f"{escape(a)} dominates {v:.0%} of {escape(b)}" for b, v in zip(names, line, strict=True)]
                   for a, line in zip(names, shares, strict=True)],
    )  # fmt: skip
    bar = {"title": {"text": "share dominated", "side": "right"}, "tickformat": ".0%", "len": 0.9}
    figure.update_layout(coloraxis={"colorscale": look.ORDERED, "cmin": 0, "cmax": 1, "colorbar": bar})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, autorange="reversed", showgrid=False)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, showgrid=False)
    figure.update_layout(height=150 + 34 * len(names), margin={"t": 12})
    return Card(title, sentence, table, figure)


def sums_card(found: Rivals) -> Card:
    """The studies' figures as a table: no picture."""
    sentence = (
        "Each line is one study, with what it has cost and what came of it: the hypervolume up to the reference "
        "point they share, and the share of its front that others dominate."
    )
    return Card("The studies", sentence, pd.DataFrame([_sums(found, rival) for rival in found.members]))


def _sums(found: Rivals, rival: Rival) -> dict[str, Any]:
    history = rival.history
    identity = history.meta.get("identity", {})
    states = [trial.state for trial in history.trials]
    others = [r.points for r in found.members if r is not rival]
    row: dict[str, Any] = {"study": rival.label, "algorithm": rival.algorithm, "seed": str(identity.get("seed", ""))}
    row["hypervolume"] = np.nan if found.corner is None else pareto.hypervolume(rival.points, found.corner)
    row["dominated by others"] = dominated_share(np.vstack([rival.points[:0], *others]), rival.points)
    row |= {"points": len(rival.front), **{state: states.count(state) for state in ("complete", "failed", "pruned")}}
    return row | {"forward tokens": history.tokens, "seconds": sum(event.seconds for event in history.events)}


def dominated_share(ours: pareto.FloatArray, theirs: pareto.FloatArray) -> float:
    """The share of their points [k, m] that some of ours [n, m] dominates, less is better; NaN where there are none.

    Zitzler and Thiele's C-metric (1999), but strict: a point that both have does not count.
    """
    if not len(theirs):
        return float("nan")
    no_worse = (ours[:, None] <= theirs[None]).all(axis=2)
    better = (ours[:, None] < theirs[None]).any(axis=2)
    return float((no_worse & better).any(axis=0).mean())
