"""The map card: the best candidate in each cell of what a search by MAP-Elites spanned, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from moopt.descriptors import Descriptor, cells, described, quality, ranges, sides
from moopt.errors import AlgorithmError
from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import logarithmic
from moopt.views.card import Card, nothing_yet

TITLE = "The best in each cell"


class Map(NamedTuple):
    """A map of elites.

    Attributes:
        best: The objective that decides within a cell.
        sides: What the map spans.
        edges: Of the cells along each side, [bins + 1] each.
        elites: The best trial by its cell, one index a side.
    """

    best: Objective
    sides: list[Descriptor]
    edges: list[npt.NDArray[np.float64]]
    elites: dict[tuple[int, ...], Trial]


def elites_map(history: History) -> Map:
    """The map of a study by its algorithm's settings, or by their defaults; it has one feasible trial or more.

    Raises:
        AlgorithmError: every trial lacks what the map spans; those that do have no cell.
    """
    settings = history.meta.get("identity", {}).get("algorithm", {})
    best = quality(history.objectives, settings.get("quality"))
    named = settings.get("descriptors")
    spanned = sides(history.objectives, best, named and [Descriptor(**entry) for entry in named])
    trials, points = _placed(spanned, history.feasible())
    elites: dict[tuple[int, ...], Trial] = {}
    for cell, trial in zip(map(tuple, cells(spanned, points).tolist()), trials, strict=True):
        held = elites.get(cell)
        if held is None or (trial.values[best.name] - held.values[best.name]) * best.sign < 0:
            elites[cell] = trial
    low, high = ranges(spanned, points)
    edges = [np.linspace(a, b, side.bins + 1) for a, b, side in zip(low, high, spanned, strict=True)]
    return Map(best, spanned, edges, elites)


def _placed(spanned: Sequence[Descriptor], trials: Sequence[Trial]) -> tuple[list[Trial], npt.NDArray[np.float64]]:
    """The trials that have what the map spans, and where they lie, [n, k]."""
    found: list[tuple[Trial, list[float]]] = []
    for trial in trials:
        try:
            found.append((trial, described(spanned, _figures(trial))))
        except AlgorithmError:
            if trial is trials[-1] and not found:
                raise
    return [trial for trial, _ in found], np.array([point for _, point in found])


def elites_data(found: Map) -> pd.DataFrame:
    """One row a filled cell: from where to where it goes, its trial and the quality of that."""
    rows: list[dict[str, Any]] = []
    for cell, trial in sorted(found.elites.items()):
        row: dict[str, Any] = {}
        for at, side, edges in zip(cell, found.sides, found.edges, strict=True):
            row |= {f"{side.name} from": float(edges[at]), f"{side.name} to": float(edges[at + 1])}
        rows.append({**row, "trial": trial.number, found.best.label: trial.values[found.best.name]})
    return pd.DataFrame(rows)


def elites_card(history: History) -> Card:
    """The heat map of the cells' best; with more than two sides, the best over the others."""
    sentence = (
        "Each cell holds the best candidate whose figures fall into it and its colour is how good that is, so the map "
        "shows what can be had anywhere, and an empty cell is where nothing was found."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    try:
        found = elites_map(history)
    except AlgorithmError as error:
        return Card(TITLE, sentence, reason=str(error))
    return Card(TITLE, sentence, elites_data(found), _figure(history, found))


def _figures(trial: Trial) -> dict[str, Any]:
    attributes = {} if trial.evaluation is None else trial.evaluation.attributes
    return {**attributes, **trial.values}


def _figure(history: History, found: Map) -> go.Figure:
    flat = len(found.sides) == 1
    width, height = len(found.edges[0]) - 1, 1 if flat else len(found.edges[1]) - 1
    z = np.full((height, width), np.nan)
    hovers = np.full((height, width), "", dtype=object)
    for cell, trial in sorted(found.elites.items()):
        at = (0 if flat else cell[1], cell[0])
        value = trial.values[found.best.name]
        if np.isnan(z[at]) or (value - z[at]) * found.best.sign < 0:
            z[at] = value
            hovers[at] = look.hover(history, trial)
    figure = go.Figure()
    figure.add_heatmap(
        x=_centres(found.edges[0]).tolist(), y=[0] if flat else _centres(found.edges[1]).tolist(),
        hovertext=hovers.tolist(), hoverinfo="text", coloraxis="coloraxis", xgap=1, ygap=1,
        **_coloured(figure, found.best, z),
    )  # fmt: skip
    y = {"visible": False} if flat else {"title": {"text": _label(history, found.sides[1])}, "showgrid": False}
    figure.update_layout(
        height=190 if flat else 420,
        xaxis={"title": {"text": _label(history, found.sides[0])}, "showgrid": False},
        yaxis=y,
        margin={"t": 12},
    )
    return figure


def _coloured(figure: go.Figure, best: Objective, z: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The colours of the cells: on a logarithmic scale over more than a decade; bright is good."""
    bar: dict[str, Any] = {"title": {"text": f"{escape(best.label)} · {look.better(best)} is better", "side": "right"}}
    filled = z[np.isfinite(z)]
    if logarithmic(filled):
        z = np.log10(z)
        ticks = np.linspace(np.log10(filled.min()), np.log10(filled.max()), 5)
        bar |= {"tickvals": ticks.tolist(), "ticktext": [look.number(10**tick, digits=2) for tick in ticks]}
    scale = {"colorscale": look.ORDERED, "reversescale": best.direction == "min", "colorbar": bar}
    figure.update_layout(coloraxis=scale)
    return {"z": [[None if np.isnan(value) else float(value) for value in row] for row in z]}


def _centres(edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centres: npt.NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2
    return centres


def _label(history: History, side: Descriptor) -> str:
    named = {o.name: o.label for o in history.objectives}
    named |= {c.name: f"{c.name} [{c.unit}]" if c.unit else c.name for c in history.constraints}
    return escape(named.get(side.name, side.name))
