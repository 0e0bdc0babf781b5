"""The attainment card: what a search reaches with every seed, with half of them, and with its luckiest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import moocore
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt import pareto
from moopt.views import look
from moopt.views.axes import around, axes
from moopt.views.card import Card
from moopt.views.rivals import Rival, Rivals

TITLE = "What each search attains"
SURFACES = ("best", "median", "worst")


def attainment(fronts: Sequence[pareto.FloatArray]) -> dict[str, pareto.FloatArray]:
    """The empirical attainment surfaces of fronts [n, 2] of one search with several seeds, less is better.

    The best is attained by one of them, the median by half, the worst by all: points [k, 2] by the first objective
    (Grunert da Fonseca, Fonseca and Hall 2001; computed by moocore).
    """
    points = np.vstack(fronts)
    sets = np.repeat(np.arange(1, len(fronts) + 1), [len(front) for front in fronts])
    percentiles = [100 / len(fronts), 50.0, 100.0]
    found = moocore.eaf(points, sets, percentiles=percentiles)
    surfaces = {}
    for name, percentile in zip(SURFACES, percentiles, strict=True):
        rows = found[np.isclose(found[:, 2], percentile), :2]
        surfaces[name] = rows[np.lexsort((-rows[:, 1], rows[:, 0]))]
    return surfaces


def attainment_card(found: Rivals) -> Card:
    """The median surface of each group of seeds, with a band from its best to its worst."""
    sentence = (
        "Each line is what half of the seeds of one search attain, and the band around it goes from the luckiest seed "
        "to what all of them attain: a narrow band is a search that can be relied on, and one band below another is a "
        "difference that is not luck."
    )
    if reason := found.nothing or _reason(found):
        return Card(TITLE, sentence, reason=reason)
    first = axes(found.members[0].history).x
    order = [j for j, o in enumerate(found.objectives) if o.name == first.name]
    order += [j for j in (0, 1) if j not in order]
    groups = {
        name: (members[0].colour, len(members), attainment([r.points[:, order] for r in members]))
        for name, members in _seeds(found).items()
    }
    objectives = [found.objectives[j] for j in order]
    signs = np.array([o.sign for o in objectives])
    rows = [
        {"search": name, "surface": surface, **dict(zip((o.label for o in objectives), point * signs, strict=True))}
        for name, (_, _, surfaces) in groups.items()
        for surface, points in surfaces.items()
        for point in points
    ]
    figure = go.Figure()
    for name, (colour, count, surfaces) in groups.items():
        _band(figure, surfaces, signs, colour)
        median = surfaces["median"] * signs
        figure.add_scatter(
            x=median[:, 0].tolist(), y=median[:, 1].tolist(), mode="lines", name=f"{escape(name)}, {count} seeds",
            line={"shape": "hv", "width": 2, "color": colour}, hoverinfo="name",
        )  # fmt: skip
    every = np.vstack([points for _, _, surfaces in groups.values() for points in surfaces.values()]) * signs
    for update, place, objective in ((figure.update_xaxes, 0, objectives[0]), (figure.update_yaxes, 1, objectives[1])):
        update(**look.axis(objective, every[:, place]), range=around(every[:, place]))
    figure.update_layout(height=460)
    return Card(TITLE, sentence, pd.DataFrame(rows), figure)


def _reason(found: Rivals) -> str:
    if len(found.objectives) != 2:
        return f"There are {len(found.objectives)} objectives; attainment surfaces are drawn for two."
    if not _seeds(found):
        return "No two of the studies differ in their seed alone: run a search with several seeds to see its luck."
    return ""


def _seeds(found: Rivals) -> Mapping[str, list[Rival]]:
    """The groups of several studies that have found something."""
    groups: dict[str, list[Rival]] = {}
    for rival in found.members:
        if rival.front and np.isfinite(rival.points).all():
            groups.setdefault(rival.group, []).append(rival)
    return {name: members for name, members in groups.items() if len(members) > 1}


def _band(figure: go.Figure, surfaces: Mapping[str, pareto.FloatArray], signs: pareto.FloatArray, colour: str) -> None:
    """What lies between the best and the worst surface."""
    best, worst = (_stepped(surfaces[name], surfaces) * signs for name in ("best", "worst"))
    around = np.vstack([best, worst[::-1]])
    figure.add_scatter(
        x=around[:, 0].tolist(), y=around[:, 1].tolist(), fill="toself", mode="lines", opacity=0.25, fillcolor=colour,
        line={"width": 0, "color": colour}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _stepped(points: pareto.FloatArray, surfaces: Mapping[str, pareto.FloatArray]) -> pareto.FloatArray:
    """The corners of a surface's steps, from the highest to the farthest value that any surface has, [2 n + 1, 2]."""
    top, right = np.vstack(list(surfaces.values())).max(axis=0)
    x = np.append(points[:, 0], right)
    y = np.append(top, points[:, 1])
    corners = [corner for i in range(len(points)) for corner in ((x[i], y[i]), (x[i], y[i + 1]))]
    return np.array([*corners, (right, y[-1])])
