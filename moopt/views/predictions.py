"""The predictions card: what the search believed of a candidate when it proposed it, against what was then measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import around, half_width, logarithmic
from moopt.views.card import Card, nothing_yet

TITLE = "How well the search predicts"
FEWEST = 3
"""Predictions from which they say something together."""
MOST_DRAWN = 600
"""Points that are drawn of each objective, the latest; the table has them all."""
FAINT = "rgba(141, 150, 166, 0.35)"
"""Of intervals, which overlap."""


def predictions_data(history: History) -> pd.DataFrame:
    """One row a prediction in the order of proposals: trial, objective, predicted, its 95% interval, and measured.

    `inside` tells whether what was measured lies in the interval, where that is widened by the measurement's own error;
    where a search tells no interval (see `SequentialKnapsack`) it is None, and `from` and `to` are NaN.
    """
    rows = []
    for trial, objective, (low, middle, high) in _foretold(history):
        value, error = trial.values[objective.name], half_width(trial, objective)
        below, above = np.hypot(middle - low, error), np.hypot(high - middle, error)
        inside = None if np.isnan(low) else bool(middle - below <= value <= middle + above)
        row: dict[str, Any] = {"trial": trial.number, "objective": objective.name, "unit": objective.unit}
        row |= {"predicted": middle, "from": middle - below, "to": middle + above, "measured": value, "inside": inside}
        rows.append(row)
    return pd.DataFrame(rows)


def predictions_card(history: History) -> Card:
    """Predicted against measured, one picture for each measured objective."""
    sentence = (
        "Each point is one candidate, placed by what the search's model expected of it when it was proposed and by "
        "what was then measured: the nearer to the diagonal, the better the model guides the search"
    )
    table = predictions_data(history)
    if reason := _reason(history, table):
        return Card(TITLE, f"{sentence}.", reason=reason)
    shown = [o for o in history.objectives if (table["objective"] == o.name).sum() >= FEWEST]
    if verdict := _verdict(table, shown):
        sentence += f", and bars are the 95% intervals that it gave, which hold {verdict}"
    return Card(TITLE, f"{sentence}.", table, _figure(history, table, shown))


def quality(found: pd.DataFrame) -> tuple[float, float]:
    """The share of one objective's intervals that held, NaN without any, and the rank correlation with the measured."""
    ranks = found["predicted"].rank().corr(found["measured"].rank())
    return float(found["inside"].dropna().astype(float).mean()), float(ranks)


def _foretold(history: History) -> Iterator[tuple[Trial, Objective, Sequence[float]]]:
    """The completed trials in the order of proposals, with what was believed of each measured objective."""
    seen: set[int] = set()
    for event in history.events:
        job = event.job
        if job.trial in seen or not 0 <= job.trial < len(history.trials):
            continue
        predicted, trial = job.note.get("predicted"), history.trials[job.trial]
        if not isinstance(predicted, Mapping) or trial.state != "complete":
            continue
        seen.add(job.trial)
        for objective in history.objectives:
            found = predicted.get(objective.name)
            if isinstance(found, float | int):
                found = (np.nan, found, np.nan)
            if found and np.isfinite([found[1], trial.values.get(objective.name, np.nan)]).all():
                yield trial, objective, found


def _reason(history: History, table: pd.DataFrame) -> str:
    if reason := nothing_yet(history):
        return reason
    if table.empty:
        return "The search stored no predictions: it uses no model of what it measures, or has not fitted one yet."
    if table["objective"].value_counts().max() < FEWEST:
        return f"There are fewer than {FEWEST} predictions yet."
    return ""


def _verdict(table: pd.DataFrame, shown: Sequence[Objective]) -> str:
    """Such as "94 of 100 values of kl"; nothing where there are no intervals."""
    parts = []
    for objective in shown:
        inside = table.loc[table["objective"] == objective.name, "inside"].dropna()
        if len(inside):
            parts.append(f"{inside.sum():,} of {len(inside):,} values of {look.plain(objective)}")
    return " and ".join(parts)


def _figure(history: History, table: pd.DataFrame, shown: Sequence[Objective]) -> go.Figure:
    figure = make_subplots(rows=len(shown), cols=1, vertical_spacing=0.22 / len(shown))
    for row, objective in enumerate(shown, 1):
        found = table[table["objective"] == objective.name].tail(MOST_DRAWN)
        _panel(figure, history, found, objective, row)
        inside, ranks = quality(table[table["objective"] == objective.name])
        figure.add_annotation(
            text=f"{'' if np.isnan(inside) else f'{inside:.0%} inside · '}rank correlation {look.number(ranks, 2)}",
            x=0, y=1, xref="x domain", yref="y domain", xanchor="left", yanchor="bottom", yshift=4, row=row, col=1,
        )  # fmt: skip
    bar = {"title": {"text": "trial", "side": "right"}, "len": 0.9}
    figure.update_layout(coloraxis={"colorscale": look.ORDERED, "colorbar": bar}, height=60 + 360 * len(shown))
    figure.update_layout(showlegend=False)
    return figure


def _panel(figure: go.Figure, history: History, found: pd.DataFrame, objective: Objective, row: int) -> None:
    predicted, measured = found["predicted"], found["measured"]
    every = [*predicted, *measured]
    logs, ends = logarithmic(every), [min(every), max(every)]
    diagonal = {"color": look.DOMINATED, "width": 1, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=diagonal, hoverinfo="skip", row=row, col=1)
    low = np.maximum(found["from"], 0.1 * predicted) if logs else found["from"]
    figure.add_scatter(
        x=predicted.tolist(), y=measured.tolist(), mode="markers", customdata=found["trial"].tolist(),
        error_x={"type": "data", "array": (found["to"] - predicted).tolist(), "thickness": 0.8, "width": 0,
                 "arrayminus": (predicted - low).tolist(), "color": FAINT},
        marker={"size": 7, "color": found["trial"].tolist(), "coloraxis": "coloraxis"},
        hovertext=[_hover(history, each, objective) for each in found.to_dict("records")], hoverinfo="text",
        row=row, col=1,
    )  # fmt: skip
    settings = look.axis(objective, every)
    figure.update_xaxes(**settings | {"title": {"text": f"predicted {escape(objective.label)}"}}, row=row, col=1)
    figure.update_yaxes(**settings | {"title": {"text": f"measured {escape(objective.label)}"}}, row=row, col=1)
    figure.update_xaxes(range=around(every), row=row, col=1)  # what an interval reaches may be far away


def _hover(history: History, row: Mapping[Any, Any], objective: Objective) -> str:
    expected = look.amount(row["predicted"], objective.unit)
    span = "" if np.isnan(row["from"]) else f" ({look.number(row['from'])} to {look.number(row['to'])})"
    trial = history.trials[row["trial"]]
    return f"{look.hover(history, trial)}<br>{escape(objective.name)} predicted {escape(expected)}{span}"
