"""The progress card: the hypervolume over what the search has cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt import pareto
from moopt.history import History
from moopt.views import look
from moopt.views.card import Card, nothing_yet

TITLE = "Progress of the search"
COSTS = {"tokens": "forward tokens", "trials": "finished trials", "seconds": "seconds of all workers together"}
"""What a search costs, by column, as an axis says it."""


def hypervolume_data(history: History, corner: pareto.FloatArray | None = None) -> pd.DataFrame:
    """One row a finished trial in the order of the log: trial, label, cost so far and hypervolume so far.

    `trials` counts what has finished, `tokens` and `seconds` everything spent up to then, failures and sensitivities
    included, with the seconds of all workers added up. The reference point, unless one is given [m], is that of the
    whole study, so that the curve never falls.
    """
    feasible = history.feasible()
    if corner is None and feasible:
        corner = history.reference()
    values = dict(zip((t.number for t in feasible), history.values(feasible), strict=True))
    front: list[pareto.FloatArray] = []
    rows: list[dict[str, Any]] = []
    tokens, seconds, volume = 0, 0.0, 0.0
    for event in history.events:
        tokens, seconds = tokens + event.tokens, seconds + event.seconds
        if event.job.kind != "evaluate" or event.outcome is None:
            continue
        point = values.get(event.job.trial)
        if point is not None and corner is not None and not any((kept <= point).all() for kept in front):
            front = [kept for kept in front if not (point <= kept).all()] + [point]
            volume = pareto.hypervolume(front, corner)
        row = {"trial": event.job.trial, "baseline": event.job.label or "", "trials": len(rows) + 1, "tokens": tokens}
        rows.append({**row, "seconds": seconds, "hypervolume": volume})
    return pd.DataFrame(rows)


def hypervolume_card(history: History) -> Card:
    """The hypervolume over forward tokens, where those are counted, over trials and over seconds."""
    table = hypervolume_data(history) if history.feasible() else pd.DataFrame()
    shown = costs([table])
    sentence = (
        "The hypervolume is how much of the space of objectives the front covers, so a curve that rises early and "
        f"high over the {COSTS[shown[0]]} is a good search, and one that has become flat is a search that may stop."
    )
    if table.empty:
        return Card(TITLE, sentence, reason=nothing_yet(history) or "The study has no log of events to draw.")
    return Card(TITLE, sentence, table, _figure(table, shown))


def costs(tables: Sequence[pd.DataFrame]) -> list[str]:
    """What searches are drawn over: the costs that any of them has counted, and always its trials."""
    return [cost for cost in COSTS if cost == "trials" or any(not t.empty and t[cost].iloc[-1] > 0 for t in tables)]


def steps(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at which the hypervolume rises, the first and the last: all that a line of steps shows."""
    rises = table["hypervolume"].diff().fillna(1.0) > 0
    rises.iloc[-1] = True
    return table[rises]


def reach(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """What the axis of hypervolumes shows: from 0 on, or what was gained after the baselines where that is little."""
    found = [table for table in tables if not table.empty]
    ends = [table.loc[table["baseline"] != "", "hypervolume"] for table in found]
    if found and all(len(end) for end in ends):
        low, high = min(end.iloc[-1] for end in ends), max(table["hypervolume"].iloc[-1] for table in found)
        gain = high - low
        if 0 < 0.5 * gain < low:  # else what the search gained would be a flat line at the top
            return {"range": [low - 0.5 * gain, high + 0.1 * gain]}
    return {"rangemode": "tozero"}


def told(row: dict[Any, Any]) -> str:
    """What a step tells."""
    tokens = f", {row['tokens']:,} tokens" if row["tokens"] else ""
    after = f"after {row['trials']} trials{tokens}, {look.number(row['seconds'])} seconds"
    return f"<b>trial {row['trial']}</b><br>hypervolume {look.number(row['hypervolume'])}<br>{after}"


def _figure(table: pd.DataFrame, shown: Sequence[str]) -> go.Figure:
    drawn, rows = steps(table), len(shown)
    hovers = [told(row) for row in drawn.to_dict("records")]
    figure = make_subplots(rows=rows, cols=1, vertical_spacing=0.26 / rows)
    opening = table[table["baseline"] != ""]
    for row, cost in enumerate(shown, 1):
        figure.add_scatter(
            x=drawn[cost].tolist(), y=drawn["hypervolume"].tolist(), customdata=drawn["trial"].tolist(), mode="lines",
            line={"shape": "hv", "width": 2, "color": look.FRONT}, hovertext=hovers, hoverinfo="text",
            showlegend=False, row=row, col=1,
        )  # fmt: skip
        figure.update_xaxes(title={"text": COSTS[cost]}, rangemode="tozero", row=row, col=1)
        if not opening.empty:
            _mark_opening(figure, float(opening[cost].iloc[-1]), row)
    figure.update_yaxes(title={"text": "hypervolume"}, **reach([table]))
    figure.update_layout(height=60 + 230 * rows, margin={"t": 12})
    return figure


def _mark_opening(figure: go.Figure, at: float, row: int) -> None:
    """A line where the baselines end, named in the first picture."""
    figure.add_vline(x=at, line={"width": 1, "dash": "dot", "color": look.BASELINE}, row=row, col=1)
    if row == 1:
        figure.add_annotation(
            x=at, y=0.99, xref="x", yref="y domain", yanchor="top", xanchor="left", xshift=5,
            text="the baselines end here", font={"color": look.BASELINE}, showarrow=False,
        )  # fmt: skip
