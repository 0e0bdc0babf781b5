"""The front card: every candidate by its objectives, the best trade-offs joined, the baselines marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import Axes, axes, half_width, is_uniform, logarithmic
from moopt.views.card import Card, nothing_yet

TITLE = "The front"
SYMBOLS = ("square-open", "triangle-up-open", "pentagon-open", "star-open")
"""Of the families of baselines that are not uniform."""
MOST_DRAWN = 1500
"""Candidates off the front of one kind that are drawn; of more every second, fourth, ... one. The table has all."""


def front_data(history: History) -> pd.DataFrame:
    """Every complete trial: number, label, role, objectives and constraints.

    The role is "front", "dominated" or "infeasible"; "replaced" where a baseline stands in its place on the front.
    """
    on = {trial.number for trial in history.front()}
    found = history.verdict()
    replaced = {} if found is None else found.replaced
    rows = []
    for trial in history.trials:
        if trial.state != "complete":
            continue
        role = "front" if trial.number in on else "dominated" if trial.feasible else "infeasible"
        role = "replaced" if trial.number in replaced else role
        row: dict[str, Any] = {"trial": trial.number, "baseline": trial.label or "", "role": role}
        row |= {o.label: trial.values[o.name] for o in history.objectives}
        names = {o.name for o in history.objectives}
        row |= {c.name: trial.values.get(c.name, np.nan) for c in history.constraints if c.name not in names}
        rows.append(row)
    return pd.DataFrame(rows)


def best_data(history: History) -> pd.DataFrame:
    """Of a single objective: every complete trial's value, and the best up to it that is feasible and not replaced."""
    table = front_data(history)
    if table.empty:
        return table
    objective = history.objectives[0]
    shown = (table["role"] != "infeasible") & ~table["trial"].isin(history.replaced())
    feasible = table[objective.label].where(shown) * objective.sign
    return table.assign(best=feasible.cummin().ffill() * objective.sign)


def front_card(history: History) -> Card:
    """The front, or with a single objective the best value over the trials."""
    places = axes(history)
    single = places.y is None
    sentence = _sentence(places)
    if not single and any(half_width(trial, o) for trial in history.front() for o in history.objectives):
        sentence = f"{sentence[:-1]}; bars are 95% intervals of what was measured."
    table = best_data(history) if single else front_data(history)
    if table.empty:
        return Card(TITLE, sentence, reason=nothing_yet(history))
    figure = _best_figure(history, table) if single else _front_figure(history, places)
    return Card("The best value so far" if single else TITLE, sentence, table, figure)


def _sentence(places: Axes) -> str:
    if places.y is None:
        better, name = look.better(places.x), look.plain(places.x)
        return f"Each point is one candidate, {better} is better, and the line is the best {name} found so far."
    x, side = look.plain(places.x), "left" if places.x.direction == "min" else "right"
    where = f"the further {side} the better its {x}, the {look.better(places.y)} the better its {look.plain(places.y)}"
    if places.colour is not None:
        shade = "darker" if places.colour.direction == "min" else "brighter"
        where += f", the {shade} the better its {look.plain(places.colour)}"
    shown = "the blue line joins" if places.colour is None else "the large points are"
    return (
        f"Each point is one candidate: {where}, and {shown} the front, the trade-offs where nothing found is better in "
        "one objective without being worse in another."
    )


def _front_figure(history: History, places: Axes) -> go.Figure:
    assert places.y is not None
    front, complete = history.front(), [t for t in history.trials if t.state == "complete"]
    feasible, on = history.feasible(), {trial.number for trial in front}
    figure = go.Figure()
    replaced = {} if (found := history.verdict()) is None else found.replaced
    off = [t for t in feasible if t.number not in on and not t.label]
    _points(figure, history, places, [t for t in off if t.number not in replaced], "dominated", _faint())
    _points(figure, history, places, [t for t in off if t.number in replaced], "replaced", _hollow())
    _points(figure, history, places, [t for t in complete if not t.feasible], "infeasible", _crossed())
    if places.colour is None:
        _front_line(figure, history, places, front)
    else:
        _front_coloured(figure, history, places, places.colour, front)
    for symbol, (family, trials) in zip(SYMBOLS, _families(feasible).items(), strict=False):
        marker = {"symbol": symbol, "size": 12, "color": look.BASELINE, "line": {"width": 1.6}}
        _points(figure, history, places, trials, family, marker)
    _uniform(figure, history, places, [t for t in feasible if is_uniform(t)])
    figure.update_layout(
        height=500,
        showlegend=True,
        meta={"axes": {"x": places.x.name, "y": places.y.name}},
        xaxis=look.axis(places.x, (t.values[places.x.name] for t in complete)),
        yaxis=look.axis(places.y, (t.values[places.y.name] for t in complete)),
    )
    return figure


def _families(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The baselines that are not uniform, by the first word of their names; as one where there are too many."""
    families: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.label and not is_uniform(trial):
            families.setdefault((trial.label.split() or [trial.label])[0], []).append(trial)
    if len(families) <= len(SYMBOLS):
        return families
    return {"baselines": [trial for members in families.values() for trial in members]}


def _points(
    figure: go.Figure, history: History, places: Axes, trials: Sequence[Trial], name: str, marker: dict[str, Any]
) -> None:
    if trials:
        shown, name = thinned(trials, name)
        figure.add_scatter(**_at(history, places, shown), mode="markers", name=escape(name), marker=marker)


def thinned(trials: Sequence[Trial], name: str) -> tuple[Sequence[Trial], str]:
    """Those that are drawn, and what they are called: which ones does not change as a few more come."""
    every = 1
    while len(trials) > MOST_DRAWN * every:
        every *= 2
    return (trials, name) if every == 1 else ([t for t in trials if t.number % every == 0], f"{name}, 1 in {every}")


def _intervals(history: History, places: Axes, trials: Sequence[Trial]) -> dict[str, Any]:
    """The bars of measured values, on a logarithmic axis ending before 0."""
    found: dict[str, Any] = {}
    for bar, objective in (("error_x", places.x), ("error_y", places.y)):
        assert objective is not None
        values = np.array([t.values[objective.name] for t in trials])
        reach = np.array([half_width(t, objective) for t in trials])
        if reach.any():
            logs = logarithmic(t.values[objective.name] for t in history.trials if t.state == "complete")
            below = np.minimum(reach, 0.9 * values) if logs else reach
            found[bar] = {"type": "data", "array": reach.tolist(), "arrayminus": below.tolist(), "width": 0}
            found[bar] |= {"thickness": 1.2, "color": look.FRONT}
    return found


def _at(history: History, places: Axes, trials: Sequence[Trial]) -> dict[str, Any]:
    """Where trials are drawn, and what they tell."""
    assert places.y is not None
    return {
        "x": [t.values[places.x.name] for t in trials],
        "y": [t.values[places.y.name] for t in trials],
        "customdata": [t.number for t in trials],
        "hovertext": [look.hover(history, t) for t in trials],
        "hoverinfo": "text",
    }


def _front_line(figure: go.Figure, history: History, places: Axes, front: Sequence[Trial]) -> None:
    if front:
        figure.add_scatter(
            **_at(history, places, front),
            **_intervals(history, places, front),
            mode="lines+markers",
            name="front",
            line={"shape": "hv", "width": 2, "color": look.FRONT},
            marker={"size": 8, "color": look.FRONT},
        )


def _front_coloured(
    figure: go.Figure, history: History, places: Axes, colour: Objective, front: Sequence[Trial]
) -> None:
    values = [t.values[colour.name] for t in front]
    marker = {"size": 11, "color": values, "coloraxis": "coloraxis", "line": {"width": 1, "color": look.FRONT}}
    if front:
        at, bars = _at(history, places, front), _intervals(history, places, front)
        figure.add_scatter(
            **at, **bars, mode="markers", name="front", legendgroup="front", marker=marker, showlegend=False
        )
        figure.add_scatter(**look.key("front"))
    bar = {"title": {"text": escape(colour.label), "side": "right"}, "len": 0.9}
    figure.update_layout(coloraxis={"colorscale": look.ORDERED, "colorbar": bar})


def _uniform(figure: go.Figure, history: History, places: Axes, trials: list[Trial]) -> None:
    """The uniform baselines: a thin line, their own symbol, and their names beside them."""
    if not trials or places.y is None:
        return
    trials = sorted(trials, key=lambda t: t.values[places.x.name])
    sides = ("top", "bottom") if places.y.direction == "min" else ("bottom", "top")
    beyond = [f"{sides[0]} right" if places.x.direction == "min" else f"{sides[0]} left" for _ in trials]
    outermost = -1 if places.x.direction == "min" else 0
    if len(trials) > 1:  # towards the corner that the front leaves empty, so that the edge does not cut it
        beyond[outermost] = f"{sides[1]} left" if places.x.direction == "min" else f"{sides[1]} right"
    figure.add_scatter(
        **_at(history, places, trials),
        mode="lines+markers+text",
        name="uniform",
        text=[escape(t.label or "") for t in trials],
        textposition=beyond,
        textfont={"color": look.UNIFORM, "size": 11},
        line={"width": 1, "dash": "dot", "color": look.UNIFORM},
        marker={"symbol": "diamond" if places.colour is None else "diamond-open", "size": 11, "color": look.UNIFORM},
        cliponaxis=False,
    )


def _faint() -> dict[str, Any]:
    return {"size": 6, "color": look.DOMINATED, "opacity": 0.45}


def _hollow() -> dict[str, Any]:
    return {"symbol": "circle-open", "size": 9, "color": look.FRONT, "line": {"width": 1.5}}


def _crossed() -> dict[str, Any]:
    return {"symbol": "x-thin", "size": 7, "opacity": 0.8, "line": {"width": 1.5, "color": look.INFEASIBLE}}


def _best_figure(history: History, table: pd.DataFrame) -> go.Figure:
    """The values of a single objective over the trials, and the best so far."""
    objective = history.objectives[0]
    figure = go.Figure()
    for role, name, marker in (
        ("dominated", "candidates", _faint()),
        ("replaced", "replaced", _hollow()),
        ("infeasible", "infeasible", _crossed()),
        ("front", "best", {"size": 10, "color": look.FRONT}),
    ):
        trials = [history.trials[n] for n in table.loc[table["role"] == role, "trial"]]
        if trials:
            figure.add_scatter(
                x=[t.number for t in trials],
                y=[t.values[objective.name] for t in trials],
                customdata=[t.number for t in trials],
                hovertext=[look.hover(history, t) for t in trials],
                hoverinfo="text",
                mode="markers",
                name=name,
                marker=marker,
            )
    figure.add_scatter(
        x=table["trial"].tolist(),
        y=table["best"].tolist(),
        mode="lines",
        name="best so far",
        line={"shape": "hv", "width": 2, "color": look.FRONT},
        hoverinfo="skip",
    )
    values = table[objective.label]
    figure.update_layout(height=420, xaxis={"title": {"text": "trial"}}, yaxis=look.axis(objective, values))
    return figure
