"""The spending card: which kind of work took the forward tokens and the seconds, and what rungs sorted out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moopt.history import History
from moopt.jobs import Failure, Job
from moopt.views import look
from moopt.views.card import Card, nothing_yet

TITLE = "What the budget went into"
KINDS = {
    "sensitivity": "sensitivities",
    "gradient": "gradients",
    "evaluate": "evaluations",
    "measure": "measurements",
}
WENT_ON, PRUNED = "went on", "pruned"


@dataclass
class Spent:
    """What one kind of work has taken."""

    jobs: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    went_on: int = 0
    pruned: int = 0


def spending_data(history: History) -> pd.DataFrame:
    """One row a kind of work: jobs that ended, failed ones among them, forward tokens and seconds of all workers.

    Screens have a row for each rung, and how many of their candidates then went on and how many were pruned.
    """
    spent: defaultdict[tuple[int, int, str], Spent] = defaultdict(Spent)
    for event in history.events:
        if event.outcome is not None:
            found = spent[_kind(event.job)]
            found.jobs += 1
            found.failed += isinstance(event.outcome, Failure)
            found.tokens += event.tokens
            found.seconds += event.seconds
    for screen, then in _sorted_out(history):
        found = spent[_kind(screen)]
        found.went_on += then != "prune"
        found.pruned += then == "prune"
    rows = []
    for key, found in sorted(spent.items()):
        row: dict[str, Any] = {"work": key[2], "jobs": found.jobs, "failed": found.failed}
        row |= {"forward tokens": found.tokens, "seconds": found.seconds}
        rows.append(row | ({WENT_ON: found.went_on, PRUNED: found.pruned} if _rungs(history) else {}))
    return pd.DataFrame(rows)


def spending_card(history: History) -> Card:
    """Bars of tokens and seconds by kind of work, and with a ladder what became of each rung's candidates."""
    sentence = (
        "Each line is one kind of work, and its bars are the share of all forward tokens and of all seconds that it "
        "took, of all workers together: what is long is where a cheaper way would pay"
    )
    if rungs := _rungs(history):
        sentence += ", and of each rung how many candidates it let through and how many it pruned"
    table = spending_data(history)
    if table.empty:
        return Card(TITLE, f"{sentence}.", reason=nothing_yet(history) or "The study has no log of events to count.")
    return Card(TITLE, f"{sentence}.", table, _figure(table, rungs))


def _kind(job: Job) -> tuple[int, int, str]:
    """Where a job's kind of work stands in the table, and its name."""
    if job.kind == "screen":
        return (
            2,
            job.fidelity.tokens,
            f"screens on {job.fidelity.tokens:,} tokens".removesuffix("s" * (job.fidelity.tokens == 1)),
        )
    order = list(KINDS).index(job.kind) + (job.kind in ("evaluate", "measure"))
    return order, 0, f"{KINDS[job.kind]}: {job.fidelity.batch}" if job.kind == "measure" else KINDS[job.kind]


def _rungs(history: History) -> bool:
    return any(event.job.kind == "screen" for event in history.events)


def _sorted_out(history: History) -> list[tuple[Job, str]]:
    """Every screen that ended, with the kind of what its trial was given next."""
    last: dict[int, Job] = {}
    found: list[tuple[Job, str]] = []
    for event in history.events:
        job = event.job
        if event.outcome is None and job.trial in last and job.kind in ("screen", "evaluate", "prune"):
            found.append((last.pop(job.trial), job.kind))
        if event.outcome is not None and job.kind == "screen":
            last[job.trial] = job
    return found


def _figure(table: pd.DataFrame, rungs: bool) -> go.Figure:
    columns = ["forward tokens", "seconds"] if table["forward tokens"].sum() else ["seconds"]
    lines = len(table)
    screened = table[table[WENT_ON] + table[PRUNED] > 0] if rungs else table[:0]
    heights = [34 * lines] * len(columns) + [34 * len(screened) + 20] * (not screened.empty)
    gap = 62 / max(sum(heights) + 62 * (len(heights) - 1), 1)
    figure = make_subplots(
        rows=len(heights), cols=1, row_heights=heights, vertical_spacing=gap if len(heights) > 1 else 0.0
    )
    for row, (column, colour) in enumerate(zip(columns, (look.FRONT, look.BASELINE), strict=False), 1):
        whole = table[column].sum() or 1
        figure.add_bar(
            x=table[column].tolist(), y=table["work"].map(escape).tolist(), orientation="h",
            marker={"color": colour, "cornerradius": 3}, showlegend=False, textposition="auto",
            text=[f"{look.number(value)} · {value / whole:.0%}" for value in table[column]],
            hovertext=[_hover(each) for each in table.to_dict("records")], hoverinfo="text", row=row, col=1,
        )  # fmt: skip
        figure.update_xaxes(title={"text": column}, rangemode="tozero", row=row, col=1)
    for name, colour in ((WENT_ON, look.FRONT), (PRUNED, look.DOMINATED)) if not screened.empty else ():
        figure.add_bar(
            x=screened[name].tolist(), y=screened["work"].tolist(), orientation="h", name=name,
            marker={"color": colour}, text=screened[name].tolist(), hovertext=[name] * len(screened),
            hoverinfo="text+x", row=len(heights), col=1,
        )  # fmt: skip
        figure.update_xaxes(title={"text": "candidates"}, row=len(heights), col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(barmode="stack", bargap=0.3, height=sum(heights) + 62 * len(heights) + 40)
    return figure


def _hover(row: dict[Any, Any]) -> str:
    jobs = f"{row['jobs']:,} {'job' if row['jobs'] == 1 else 'jobs'}" + (
        f", {row['failed']:,} failed" if row["failed"] else ""
    )
    tokens, seconds = f"{row['forward tokens']:,} forward tokens", f"{look.number(row['seconds'])} seconds"
    return f"<b>{escape(row['work'])}</b><br>{jobs}<br>{tokens}<br>{seconds}"
