"""The decisions card: what each point of the front decided, decision by decision, as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from html import escape
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt.history import History, Trial
from moopt.views import look
from moopt.views.axes import Axes, axes, evenly
from moopt.views.card import Card, nothing_yet

TITLE = "What the front decided"
MOST_NAMED = 12
"""More different values than this are drawn as a position between the least and the greatest."""
MOST_COLUMNS = 120
"""Points of the front that are shown, evenly along it: more would be thinner than a line."""
MOST_TOLD = 10_000
"""Cells from which each tells two objectives and not all: what they tell is most of what is sent."""


@dataclass(frozen=True)
class Line:
    """One row of the heat map: a decision, or the gap between two groups (no name)."""

    name: str = ""
    row: str = ""
    group: str = ""
    label: str = ""


@dataclass(frozen=True)
class Coded:
    """The values of the heat map as numbers.

    Attributes:
        z: [lines, points]; an index into `names`, or a position from 0 to 1 where there are too many values.
        names: The values in order; empty for positions.
        ordered: Whether the order means something.
    """

    z: npt.NDArray[np.float64]
    names: list[str]
    ordered: bool


def layout(history: History) -> list[dict[str, str]]:
    """The decisions by column, then row, each with its `name`, `row`, `column` and `label`.

    Columns and rows come in the order in which `meta["decisions"]` first names them; without that entry the
    decisions are what the configurations name.
    """
    given: Sequence[Mapping[str, Any]] = history.meta.get("decisions") or ()
    if not given:
        names = dict.fromkeys(name for trial in history.trials for name in trial.config)
        given = [{"name": name, "row": name, "column": "", "label": name} for name in names]
    entries = [{key: str(entry.get(key, "")) for key in ("name", "row", "column", "label")} for entry in given]
    columns = list(dict.fromkeys(entry["column"] for entry in entries))
    rows = list(dict.fromkeys(entry["row"] for entry in entries))
    return sorted(entries, key=lambda e: (columns.index(e["column"]), rows.index(e["row"])))


def decisions_data(history: History) -> pd.DataFrame:
    """One row a decision in the order of `layout`, one column a front point, of many an even choice."""
    front, entries = evenly(history.front(), MOST_COLUMNS), layout(history)
    columns = {_heading(history, trial): [trial.config.get(e["name"]) for e in entries] for trial in front}
    named = {"decision": [e["label"] or e["name"] for e in entries], "group": [e["column"] for e in entries]}
    return pd.DataFrame({**named, **columns}, dtype=object)


def decisions_card(history: History) -> Card:
    """The heat map of the front's decisions."""
    places = axes(history)
    x = places.x
    ends = "from the least to the greatest" if x.direction == "min" else "from the greatest to the least"
    sentence = (
        f"Each column is one point of the front, ordered {ends} {look.plain(x)}, each line is one decision, and the "
        "colour is the value it was given: a line that stands out is a decision that good candidates treat unlike its "
        "neighbours."
    )
    if places.y is None:
        sentence = "Each line is one decision, and the colour is the value that the best candidate gave it."
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    if (points := len(history.front())) > MOST_COLUMNS:
        sentence = f"{sentence[:-1]}; {MOST_COLUMNS} of the {points:,} points are shown, evenly along the front."
    table = decisions_data(history)
    if table.empty:
        return Card(TITLE, sentence, reason="The configurations have no decisions to draw.")
    return Card(TITLE, sentence, table, _figure(history))


def _heading(history: History, trial: Trial) -> str:
    x = axes(history).x
    return f"trial {trial.number}: {look.amount(trial.values[x.name], x.unit)}"


def _lines(history: History) -> list[Line]:
    """The heat map's rows from top to bottom, a gap between groups."""
    lines: list[Line] = []
    for entry in layout(history):
        if lines and lines[-1].group != entry["column"]:
            lines.append(Line())
        lines.append(Line(entry["name"], entry["row"], entry["column"], entry["label"] or entry["name"]))
    return lines


def _options(history: History, names: Sequence[str]) -> dict[str, list[Any]]:
    """The values a decision may take: as the space lists them, else as the trials show them."""
    space = history.meta.get("identity", {}).get("space", {})
    options: dict[str, list[Any]] = {}
    for name in names:
        listed = space.get(name, {}).get("values")
        options[name] = list(listed or (t.config[name] for t in history.trials if name in t.config))
    return options


def _in_order(history: History, options: Mapping[str, list[Any]]) -> tuple[list[str], bool]:
    """All values, and whether their order means something: of numbers, and of ordinals that agree on one."""
    every = [value for values in options.values() for value in values]
    if all(map(_is_number, every)):
        return list(dict.fromkeys(map(_named, sorted(every)))), True
    space = history.meta.get("identity", {}).get("space", {})
    named = dict.fromkeys(map(_named, every))
    if all(space.get(name, {}).get("kind") == "ordinal" for name in options):
        sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(named, ()))
        for before, after in chain.from_iterable(map(pairwise, options.values())):
            sorter.add(_named(after), _named(before))
        with suppress(CycleError):
            return list(sorter.static_order()), True
    return list(named), False


def _coded(history: History, lines: Sequence[Line], front: Sequence[Trial]) -> Coded:
    names = [line.name for line in lines if line.name]
    options = _options(history, names)
    named, ordered = _in_order(history, options)
    index = {name: i for i, name in enumerate(named)}
    if len(index) <= MOST_NAMED:
        z = [
            [index.get(_named(t.config.get(line.name)), np.nan) if line.name else np.nan for t in front]
            for line in lines
        ]
        return Coded(np.array(z, dtype=float), list(index), ordered)
    spread = [[_position(t.config.get(line.name), options.get(line.name, [])) for t in front] for line in lines]
    return Coded(np.array(spread, dtype=float), [], ordered=True)


def _position(value: Any, options: Sequence[Any]) -> float:
    """Where a value lies among its decision's options, from 0 to 1; NaN for a gap."""
    if value is None or not options:
        return float("nan")
    if all(_is_number(option) for option in options):
        low, high = min(options), max(options)
        return float((value - low) / (high - low)) if high > low else 0.5
    listed = list(dict.fromkeys(map(_named, options)))
    return listed.index(_named(value)) / max(len(listed) - 1, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _named(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else str(value)


def _figure(history: History) -> go.Figure:
    places, front, lines = axes(history), evenly(history.front(), MOST_COLUMNS), _lines(history)
    tall = int(min(max(len(lines) * min(max(600 / len(lines), 7), 24), 60), 1100))
    strip = 90 if places.y is not None and len(front) > 1 else 0
    figure = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[max(strip, 1), tall], vertical_spacing=16 / (tall + 110)
    )
    coded = _coded(history, lines, front)
    scale = {"coloraxis": "coloraxis2"}
    figure.add_trace(
        go.Heatmap(
            z=coded.z,
            hovertext=_hovers(history, lines, front),
            hoverinfo="text",
            xgap=int(len(front) <= 60),
            meta={"columns": [trial.number for trial in front]},
            **scale,
        ),
        2,
        1,
    )
    _name_values(figure, coded, history)
    _name_lines(figure, lines)
    _name_points(figure, places, front)
    if strip:
        _strip(figure, history, places, front)
    figure.update_layout(height=tall + strip + 130, xaxis={"visible": False}, margin={"t": 48})
    return figure


def _hovers(history: History, lines: Sequence[Line], front: Sequence[Trial]) -> list[list[str]]:
    told = history.objectives if len(lines) * len(front) <= MOST_TOLD else history.objectives[:2]
    figures = [[f"{escape(o.name)} {escape(look.amount(t.values[o.name], o.unit))}" for o in told] for t in front]
    points = [" · ".join([f"trial {t.number}", *found]) for t, found in zip(front, figures, strict=True)]
    return [
        [
            f"<b>{escape(_cut(line.label, 48))}: {escape(_named(trial.config.get(line.name)))}</b><br>{point}"
            if line.name
            else ""
            for trial, point in zip(front, points, strict=True)
        ]
        for line in lines
    ]


def _strip(figure: go.Figure, history: History, places: Axes, front: Sequence[Trial]) -> None:
    """The measured objective above the columns it belongs to."""
    assert places.y is not None
    y = [t.values[places.y.name] for t in front]
    line, marker = {"color": look.FRONT, "width": 1.5}, {"color": look.FRONT, "size": 5}
    hovers = [look.hover(history, trial) for trial in front]
    trace = go.Scatter(y=y, mode="lines+markers", line=line, marker=marker, hovertext=hovers, hoverinfo="text")
    trace.customdata = [trial.number for trial in front]
    figure.add_trace(trace.update(showlegend=False), 1, 1)
    axis = look.axis(places.y, y) | {"title": {"text": escape(places.y.name)}, "nticks": 4}
    if "dtick" in axis:
        axis["dtick"] = max(1, round(np.log10(max(y) / min(y)) / 2))
    figure.update_yaxes(**axis, row=1, col=1)


def _name_values(figure: go.Figure, coded: Coded, history: History) -> None:
    """The colours, and what names them: a bar for values in an order, a legend for others."""
    n = len(coded.names)
    units = {str(entry.get("unit", "")) for entry in history.meta.get("decisions") or ()}
    title = units.pop() if len(units) == 1 else ""
    bar: dict[str, Any] = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom", "len": 0.6}
    bar |= {"xpad": 0, "title": {"text": escape(title), "side": "top"}}
    if not n:
        bar |= {"tickvals": [0, 1], "ticktext": ["least", "greatest"], "title": {"text": "within the decision's range"}}
        figure.update_layout(coloraxis2={"colorscale": look.ORDERED, "cmin": 0, "cmax": 1, "colorbar": bar})
        return
    bar |= {"tickvals": list(range(n)), "ticktext": [escape(name) for name in coded.names]}
    colours = look.ramp(n) if coded.ordered else look.UNORDERED * 2
    steps = [[(i + side) / n, colours[i]] for i in range(n) for side in (0, 1)]
    figure.update_layout(coloraxis2={"colorscale": steps, "cmin": -0.5, "cmax": n - 0.5, "colorbar": bar})
    if coded.ordered:
        return
    figure.update_layout(coloraxis2={"showscale": False})
    figure.update_layout(legend={"title": {"text": escape(title)}, "itemclick": False, "itemdoubleclick": False})
    for name, colour in zip(coded.names, colours, strict=False):
        marker = {"symbol": "square", "size": 13, "color": colour}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=escape(name)), 2, 1)


def _name_lines(figure: go.Figure, lines: Sequence[Line]) -> None:
    """The rows' names, as many as fit, and the groups' names beside them."""
    groups: dict[str, list[int]] = {}
    for at, line in enumerate(lines):
        if line.name:
            groups.setdefault(line.group, []).append(at)
    grouped = len(groups) > 1
    every = 1 if len(lines) <= 40 else max(5, 5 * round(len(lines) / 120))
    ticks = [at for members in groups.values() for at in members[::every]]
    texts = [lines[at].row if grouped else lines[at].label for at in ticks]
    figure.update_yaxes(
        autorange="reversed",
        tickvals=ticks,
        ticktext=[escape(_cut(text)) for text in texts],
        showgrid=False,
        row=2,
        col=1,
    )
    for group, members in groups.items() if grouped else ():
        if len(members) == 1:  # its row names it
            continue
        figure.add_annotation(
            text=f"<b>{escape(_cut(group))}</b>",
            x=0, xref="paper", xanchor="right", xshift=-30, textangle=-90,
            y=(members[0] + members[-1]) / 2, yref="y2", yanchor="middle", showarrow=False,
        )  # fmt: skip
    figure.update_layout(margin={"l": 52 if grouped else 8})


def _name_points(figure: go.Figure, places: Axes, front: Sequence[Trial]) -> None:
    """The columns' names: the objective on x, at most eight of them."""
    shown = sorted({round(i) for i in np.linspace(0, len(front) - 1, min(len(front), 6))})
    values = [look.number(front[i].values[places.x.name], digits=3) for i in shown]
    title = f"{escape(places.x.label)} of the front's points, in order"
    figure.update_xaxes(range=[-0.5, len(front) - 0.5])
    figure.update_xaxes(
        tickvals=shown, ticktext=values, title={"text": title}, showgrid=False, tickangle=0, row=2, col=1
    )


def _cut(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
