"""The progress card: the hypervolume over what the search has cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moopt import pareto
from moopt.history import History
from moopt.views import look
from moopt.views.card import Card, nothing_yet

TITLE = "Progress of the search"


def hypervolume_data(history: History) -> pd.DataFrame:
    """One row a finished trial in the order of the log: trial, label, cost so far and hypervolume so far.

    `trials` counts what has finished, `tokens` everything spent up to then in forward tokens, failures and
    sensitivities included. The reference point is that of the whole study, so that the curve never falls.
    """
    feasible = history.feasible()
    corner = history.reference() if feasible else None
    values = dict(zip((t.number for t in feasible), history.values(feasible), strict=True))
    front: list[pareto.FloatArray] = []
    rows: list[dict[str, Any]] = []
    tokens, volume = 0, 0.0
    for event in history.events:
        tokens += event.tokens
        if event.job.kind != "evaluate" or event.outcome is None:
            continue
        point = values.get(event.job.trial)
        if point is not None and corner is not None and not any((kept <= point).all() for kept in front):
            front = [kept for kept in front if not (point <= kept).all()] + [point]
            volume = pareto.hypervolume(front, corner)
        row = {"trial": event.job.trial, "baseline": event.job.label or "", "trials": len(rows) + 1, "tokens": tokens}
        rows.append({**row, "hypervolume": volume})
    return pd.DataFrame(rows)


def hypervolume_card(history: History) -> Card:
    """The hypervolume over forward tokens, or over trials where no tokens are counted."""
    table = hypervolume_data(history) if history.feasible() else pd.DataFrame()
    cost = "tokens" if not table.empty and table["tokens"].iloc[-1] > 0 else "trials"
    unit = "tokens run through the model" if cost == "tokens" else "finished trials"
    sentence = (
        f"The hypervolume is how much of the space of objectives the front covers, so a curve that rises early and "
        f"high over the {unit} is a good search, and one that has become flat is a search that may stop."
    )
    if table.empty:
        return Card(TITLE, sentence, reason=nothing_yet(history) or "The study has no log of events to draw.")
    return Card(TITLE, sentence, table, _figure(table, cost))


def _figure(table: pd.DataFrame, cost: str) -> go.Figure:
    label = "forward tokens" if cost == "tokens" else "finished trials"
    hovers = [
        f"<b>trial {row['trial']}</b><br>hypervolume {look.number(row['hypervolume'])}<br>after {row['trials']} trials"
        + (f", {row['tokens']:,} tokens" if cost == "tokens" else "")
        for row in table.to_dict("records")
    ]
    figure = go.Figure()
    figure.add_scatter(
        x=table[cost].tolist(),
        y=table["hypervolume"].tolist(),
        customdata=table["trial"].tolist(),
        mode="lines",
        line={"shape": "hv", "width": 2, "color": look.FRONT},
        hovertext=hovers,
        hoverinfo="text",
        showlegend=False,
    )
    yaxis: dict[str, Any] = {"title": {"text": "hypervolume · higher is better"}, "rangemode": "tozero"}
    opening = table[table["baseline"] != ""]
    if not opening.empty:
        end = opening.iloc[-1]
        figure.add_vline(x=end[cost], line={"width": 1, "dash": "dot", "color": look.BASELINE})
        figure.add_annotation(
            x=end[cost], y=0.99, yref="paper", yanchor="top", xanchor="left", xshift=5,
            text="the baselines end here", font={"color": look.BASELINE},
        )  # fmt: skip
        final = table["hypervolume"].iloc[-1]
        gain = final - end["hypervolume"]
        if 0 < 0.5 * gain < end["hypervolume"]:  # else what the search gained would be a flat line at the top
            yaxis["range"] = [end["hypervolume"] - 0.5 * gain, final + 0.1 * gain]
    figure.update_layout(
        height=340, xaxis={"title": {"text": label}, "rangemode": "tozero"}, yaxis=yaxis, margin={"t": 12}
    )
    return figure
