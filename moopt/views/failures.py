"""The failures card: what went wrong, how often, and when in the search."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moopt.history import History
from moopt.jobs import Failure
from moopt.views import look
from moopt.views.card import Card, nothing_yet

TITLE = "What failed"
MOST_LINES, LONGEST = 12, 48
"""Reasons that are drawn, the most frequent ones, and the letters of each; the table has them all."""


def failures_data(history: History) -> pd.DataFrame:
    """One row a reason, the most frequent first: work, failure, message, times, first and last trial.

    A job that was tried again and then succeeded is none of them. The trial is -1 for what belongs to none.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for trial, work, failure in _failed(history):
        named = {"work": work, "failure": failure.kind, "message": failure.message}
        row = rows.setdefault((work, failure.kind, failure.message), named | {"times": 0, "first trial": trial})
        row["times"] += 1
        row["last trial"] = trial
    table = pd.DataFrame(list(rows.values()))
    return table if table.empty else table.sort_values("times", ascending=False, kind="stable", ignore_index=True)


def failures_card(history: History) -> Card:
    """When each kind of failure came."""
    sentence = (
        "Each line is one reason for which jobs failed and each mark a trial that it met: marks throughout say that "
        "something is wrong with the problem, a cluster that it was where or when those trials ran."
    )
    if not history.trials:
        return Card(TITLE, sentence, reason=nothing_yet(history))
    table = failures_data(history)
    if table.empty:
        return Card(TITLE, sentence, reason="Nothing has failed.")
    return Card(TITLE, sentence, table, _figure(history, table))


def _failed(history: History) -> list[tuple[int, str, Failure]]:
    """Trials and the kind of job that failed, in the order in which they did."""
    ends = [(event.job, event.outcome) for event in history.events]
    return [(job.trial, job.kind, outcome) for job, outcome in ends if isinstance(outcome, Failure)]


def _figure(history: History, table: pd.DataFrame) -> go.Figure:
    shown = table.head(MOST_LINES).to_dict("records")
    places = {(row["work"], row["failure"], row["message"]): i for i, row in enumerate(shown)}
    marks = [(n, places.get((work, f.kind, f.message)), f.message) for n, work, f in _failed(history) if n >= 0]
    drawn = [(number, place, message) for number, place, message in marks if place is not None]
    figure = go.Figure()
    figure.add_scatter(
        x=[number for number, _, _ in drawn], y=[place for _, place, _ in drawn], mode="markers", showlegend=False,
        marker={"symbol": "x-thin", "size": 9, "line": {"width": 1.8, "color": look.INFEASIBLE}},
        customdata=[number for number, _, _ in drawn], hoverinfo="text",
        hovertext=[f"<b>trial {number}</b><br>{escape(_cut(message, 120))}" for number, _, message in drawn],
    )  # fmt: skip
    for place, row in enumerate(shown):
        figure.add_annotation(
            text=f"<b>{row['times']:,} ×</b> {escape(_cut(row['failure'] + ': ' + row['message']))}",
            x=0, xref="paper", y=place - 0.5, xanchor="left", yanchor="middle", showarrow=False,
        )  # fmt: skip
    last = max(len(history.trials) - 1, 1)
    figure.update_xaxes(title={"text": "trial"}, range=[-0.02 * last, 1.02 * last])
    figure.update_yaxes(
        tickvals=list(range(len(shown))), showticklabels=False, showgrid=True, range=[len(shown) - 0.5, -0.9]
    )
    figure.update_layout(height=70 + 52 * len(shown), margin={"t": 8})
    return figure


def _cut(text: str, most: int = LONGEST) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
