"""The importance card: which decisions move a measured objective, and by how much, as bars."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moopt.errors import MooptError
from moopt.history import History
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes
from moopt.views.card import Card, nothing_yet
from moopt.views.decisions import layout

TITLE = "Which decisions matter"
MOST_BARS = 30
"""Decisions that are drawn; the table has them all."""
MOST_GROUPS = 10
"""Groups of decisions up to which each has a colour."""
LARGE = 10_000
"""Completed trials by decisions by measured objectives from which the card samples: all would take seconds."""
FEWER_TRIALS, FEWER_CANDIDATES = 80, 8
"""What it then looks at."""


def importance_data(history: History) -> pd.DataFrame:
    """One row a decision, the one that moves the main measured objective most first: name, group, one column each.

    Raises:
        MooptError: it cannot be told yet; says why.
    """
    from moopt.importance import stored_importance

    return _listed(history, stored_importance(history))


def importance_sample(history: History) -> pd.DataFrame:
    """The same of the main objective alone, by fewer trials and around fewer candidates: quick in a large study.

    Raises:
        MooptError: it cannot be told yet; says why.
    """
    from moopt.importance import stored_importance

    return _listed(history, stored_importance(history, [_main(history)], FEWER_TRIALS, FEWER_CANDIDATES))


def _listed(history: History, found: pd.DataFrame) -> pd.DataFrame:
    """The importance [decisions, objectives] with the decisions' names, the greatest first."""
    named = {entry["name"]: entry for entry in layout(history)}
    entries = [named.get(str(name), {"label": str(name), "column": ""}) for name in found.index]
    table = found.rename(columns={o.name: f"moves {o.label} by" for o in history.objectives}).reset_index(drop=True)
    table.insert(0, "decision", [e["label"] or str(n) for e, n in zip(entries, found.index, strict=True)])
    table.insert(1, "group", [entry["column"] for entry in entries])
    order = found[_main(history).name].to_numpy().argsort(kind="stable")[::-1]
    return table.iloc[order].reset_index(drop=True)


def importance_card(history: History) -> Card:
    """The bars of the decisions that matter most."""
    main = _main(history)
    sentence = (
        f"Each bar is one decision, and its length is by how much {look.plain(main)} typically moves when that "
        "decision alone is changed in a candidate of the front, as a model of the trials expects it: what is on top is "
        "worth a second look, and with fewer trials than decisions the order is a guess"
    )
    large = _size(history) > LARGE
    if large:
        sentence += f"; of this many trials the model has seen the {FEWER_TRIALS} nearest to the front"
    sentence += "."
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    try:
        table = importance_sample(history) if large else importance_data(history)
    except MooptError as error:
        return Card(TITLE, sentence, reason=str(error))
    return Card(TITLE, sentence, table, _figure(table, main))


def _size(history: History) -> int:
    """Completed trials by decisions by measured objectives: what a model of all takes grows with it."""
    completed = sum(trial.state == "complete" for trial in history.trials)
    return completed * len(layout(history)) * sum(not o.known for o in history.objectives)


def _main(history: History) -> Objective:
    """The measured objective that the other cards compare; any where all are known."""
    main = axes(history).main
    return next((o for o in (main, *history.objectives) if not o.known), main)


def _figure(table: pd.DataFrame, main: Objective) -> go.Figure:
    shown = table.head(MOST_BARS)
    column = f"moves {main.label} by"
    groups = list(dict.fromkeys(table["group"]))
    told = 1 < len(groups) <= MOST_GROUPS
    figure = go.Figure()
    for group, colour in zip(groups if told else [""], look.UNORDERED, strict=False):
        own = shown[shown["group"] == group] if told else shown
        figure.add_bar(
            x=own[column].tolist(), y=own.index.tolist(), orientation="h", marker={"color": colour},
            name=escape(str(group)), hovertext=[_hover(row, main) for row in own.to_dict("records")], hoverinfo="text",
        )  # fmt: skip
    names = [escape(name if len(name) <= 30 else name[:29] + "…") for name in shown["decision"]]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False)
    figure.update_xaxes(title={"text": f"{escape(main.label)} · how far it moves"}, rangemode="tozero")
    figure.update_layout(height=90 + 20 * len(shown) + 30 * told, barmode="overlay", bargap=0.25, showlegend=told)
    figure.update_layout(margin={"t": 36 if told else 12})
    return figure


def _hover(row: dict[Any, Any], main: Objective) -> str:
    moved = escape(look.amount(row[f"moves {main.label} by"], main.unit))
    return f"<b>{escape(row['decision'])}</b><br>moves {escape(look.plain(main))} by {moved}"
