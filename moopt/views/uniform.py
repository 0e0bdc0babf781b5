"""The comparison card: what the search gained over treating every decision alike, at no more of the known objective."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import HELD_OUT, axes, baselines, held_out, held_out_label, is_uniform
from moopt.views.card import Card, nothing_yet
from moopt.views.held_out import verdict

TITLE = "Against uniform"
GAIN, POINT = "better by [%]", "the front's point"


def uniform_data(history: History) -> pd.DataFrame:
    """For every uniform baseline the front's best point that takes no more of any known objective.

    The point is chosen by the value the search saw, and both held-out values stand side by side. `better by [%]` is
    relative to the baseline's value; negative where the baseline is better.
    """
    main, known = axes(history).main, [o for o in history.objectives if o.known]
    front, rows = history.front(), []
    for uniform in (t for t in baselines(history) if is_uniform(t)):
        within = [t for t in front if all(t.values[o.name] * o.sign <= uniform.values[o.name] * o.sign for o in known)]
        if not within or not known:
            continue
        best = min(within, key=lambda t: t.values[main.name] * main.sign)
        theirs, ours = held_out(history, uniform, main), held_out(history, best, main)
        row: dict[str, Any] = {"baseline": uniform.label}
        row |= {f"its {o.label}": uniform.values[o.name] for o in known}
        row[f"its {held_out_label(main)}"] = theirs
        row[POINT] = _name(best)
        row |= {o.label: best.values[o.name] for o in known}
        row[held_out_label(main)] = ours
        row[GAIN] = 100 * (theirs - ours) * main.sign / abs(theirs) if theirs else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def uniform_card(history: History) -> Card:
    """How much better than each uniform baseline the front is at its size, on held-out data."""
    places = axes(history)
    main, more = places.main, "more" if places.x.direction == "min" else "less"
    known = " and ".join(look.plain(o) for o in history.objectives if o.known) or "size"
    sentence = (
        f"For every uniform baseline, how much {look.better(main)} the held-out {look.plain(main)} is at the front's "
        f"best point with no {more} {known} than it, chosen without looking at held-out data"
    )
    table = uniform_data(history)
    if reason := _reason(history, table):
        return Card(TITLE, f"{sentence}.", reason=reason)
    return Card(TITLE, f"{sentence}.{verdict(history)}", table, _figure(table, main))


def findings(history: History, most: int = 3) -> list[str]:
    """The best comparisons in words, such as "At the size of uniform-4 the front's kl is 27% lower (held-out)."."""
    main, table = axes(history).main, uniform_data(history)
    if _reason(history, table):
        return []
    gains = table[table[GAIN] >= 0.5].nlargest(most, GAIN).sort_index()
    size = look.plain(next(o for o in history.objectives if o.known))
    better = f"% {look.better(main)} ({HELD_OUT})."
    return [
        f"At the {size} of {baseline} the front's {look.plain(main)} is {gain:.0f}{better}"
        for baseline, gain in zip(gains["baseline"], gains[GAIN], strict=True)
    ]


def _name(trial: Trial) -> str:
    return f"trial {trial.number}" + (f", {trial.label}" if trial.label else "")


def _reason(history: History, table: pd.DataFrame) -> str:
    if reason := nothing_yet(history):
        return reason
    if not any(o.known for o in history.objectives):
        return "No objective is known exactly, so there is no size at which to compare."
    if not any(is_uniform(trial) for trial in baselines(history)):
        return 'The study has no feasible baseline whose name starts with "uniform".'
    if table.empty or table[GAIN].isna().all():
        return "The front and the baselines are not measured on held-out data yet."
    return ""


def _figure(table: pd.DataFrame, main: Objective) -> go.Figure:
    shown = table[table[GAIN].notna()]
    gains = shown[GAIN].tolist()
    ours, theirs = held_out_label(main), f"its {held_out_label(main)}"
    hovers = [
        f"<b>{escape(row['baseline'])}</b>: {look.number(row[theirs])}<br>"
        f"{escape(row[POINT])}: {look.number(row[ours])}"
        for row in shown.to_dict("records")
    ]
    figure = go.Figure()
    figure.add_bar(
        x=gains,
        y=[escape(str(label)) for label in shown["baseline"]],
        orientation="h",
        marker={"color": [look.FRONT if gain > 0 else look.DOMINATED for gain in gains], "cornerradius": 3},
        text=[f"{gain:.1f}%" for gain in gains],
        textposition="outside",
        hovertext=hovers,
        hoverinfo="text",
        cliponaxis=False,
        showlegend=False,
    )
    least, greatest = min(0.0, *gains), max(0.0, *gains)
    figure.update_layout(
        height=80 + 34 * len(shown),
        bargap=0.35,
        yaxis={"autorange": "reversed", "showgrid": False},
        xaxis={
            "title": {"text": f"{HELD_OUT} {escape(main.name)} {look.better(main)} by [%]"},
            "range": [least * 1.2, max(greatest, 1.0) * 1.15],
        },
        margin={"t": 8, "r": 24},
    )
    return figure
