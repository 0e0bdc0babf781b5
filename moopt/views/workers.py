"""The workers card: when candidates were evaluated, and how many at a time. Knows only what the storage noted."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt.history import History, Trial
from moopt.views import look
from moopt.views.card import Card, nothing_yet

TITLE = "When it ran"
MOST_BARS = 1000
"""Evaluations from which those that follow one another closely are drawn as one."""
CLOSE = 1 / 1000
"""How close, and how short a bar is at least, as a share of the time that is shown."""


class Span(NamedTuple):
    """When a trial was evaluated, in seconds from the beginning."""

    trial: Trial
    lane: int
    start: float
    end: float


def spans(history: History) -> list[Span]:
    """The evaluations whose end was noted, by their beginning; those at the same time are in different lanes."""
    timed = [(trial, trial.ended) for trial in history.trials if trial.ended is not None]
    if not timed:
        return []
    pairs = [(ended.timestamp() - trial.seconds, ended.timestamp(), trial) for trial, ended in timed]
    pairs.sort(key=lambda pair: (pair[0], pair[1], pair[2].number))
    first = pairs[0][0]
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    found = []
    for start, end, trial in pairs:
        while busy and busy[0][0] <= start + 1e-6 * max(1.0, trial.seconds):
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        found.append(Span(trial, lane, start - first, end - first))
    return found


def workers_data(history: History) -> pd.DataFrame:
    """One row an evaluation: trial, state, which of those at the same time it was, beginning, seconds."""
    return pd.DataFrame(
        [
            {"trial": span.trial.number, "state": _state(span.trial), "lane": span.lane + 1,
             "began": _clock(span.trial.ended, span.trial.seconds), "seconds": span.trial.seconds}
            for span in spans(history)
        ]
    )  # fmt: skip


def workers_card(history: History) -> Card:
    """A bar for each evaluation, in as many lanes as ran at the same time."""
    sentence = (
        "Each bar is one evaluation from its beginning to its end, and those that ran at the same time are in lanes "
        "above one another: gaps are time in which workers waited, for the search or for other jobs."
    )
    if not history.trials:
        return Card(TITLE, sentence, reason=nothing_yet(history))
    found = spans(history)
    if not found:
        return Card(TITLE, sentence, reason="The study's trials have no times: none has ended, or none was noted.")
    return Card(TITLE, sentence, workers_data(history), _figure(history, found))


def _figure(history: History, found: Sequence[Span]) -> go.Figure:
    whole = max(span.end for span in found) or 1.0
    unit, scale = next((name, size) for name, size in UNITS if whole > 2 * size or size == 1.0)
    colours = {"complete": look.FRONT, "infeasible": look.UNIFORM, "failed": look.INFEASIBLE}
    figure = go.Figure()
    for state, colour in colours.items():
        own = [span for span in found if _state(span.trial) == state]
        if own:
            figure.add_scatter(**_bars(history, own, whole, scale), name=state, line={"width": 12, "color": colour})
    lanes = 1 + max(span.lane for span in found)
    began = _clock(found[0].trial.ended, found[0].trial.seconds)
    figure.update_xaxes(title={"text": f"{unit} since {began}"}, range=[-0.01 * whole / scale, 1.01 * whole / scale])
    ticks = list(range(lanes)) if lanes <= 16 else list(range(0, lanes, 8))
    figure.update_yaxes(
        tickvals=ticks, ticktext=[str(lane + 1) for lane in ticks], range=[lanes - 0.3, -0.7], showgrid=False,
        title={"text": "at the same time"},
    )  # fmt: skip
    figure.update_layout(height=min(130 + 22 * lanes, 600))
    return figure


UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def _bars(history: History, own: Sequence[Span], whole: float, scale: float) -> dict[str, object]:
    """The lines of spans; of very many those that nearly touch are joined, and tell nothing of one trial."""
    if len(own) > MOST_BARS:
        ends = _joined(own, CLOSE * whole)
        x = [value for _, start, end in ends for value in (start / scale, end / scale, None)]
        return {
            "x": x,
            "y": [y for lane, _, _ in ends for y in (lane, lane, None)],
            "mode": "lines",
            "hoverinfo": "skip",
        }
    hovers = [look.hover(history, s.trial) if s.trial.values else f"<b>trial {s.trial.number}</b>" for s in own]
    told = [f"{hover}<br>{look.number(span.trial.seconds)} seconds" for hover, span in zip(hovers, own, strict=True)]
    return {
        "x": [value for s in own for value in (s.start / scale, max(s.end, s.start + CLOSE * whole) / scale, None)],
        "y": [value for span in own for value in (span.lane, span.lane, None)],
        "customdata": [value for span in own for value in (span.trial.number, span.trial.number, None)],
        "hovertext": [value for text in told for value in (text, text, "")],
        "mode": "lines",
        "hoverinfo": "text",
    }


def _joined(own: Sequence[Span], close: float) -> list[tuple[int, float, float]]:
    """Lane, start and end of spans, with those that follow one another within `close` seconds as one."""
    found: list[tuple[int, float, float]] = []
    for span in sorted(own, key=lambda span: (span.lane, span.start)):
        if found and found[-1][0] == span.lane and span.start - found[-1][2] <= close:
            found[-1] = (span.lane, found[-1][1], max(span.end, found[-1][2]))
        else:
            found.append((span.lane, span.start, span.end))
    return found


def _state(trial: Trial) -> str:
    return "infeasible" if trial.state == "complete" and not trial.feasible else trial.state


def _clock(ended: datetime | None, seconds: float) -> str:
    """When an evaluation of so many seconds began, to the second."""
    assert ended is not None
    began = np.datetime64(int((ended.timestamp() - seconds) // 1), "s")
    return f"{str(began).replace('T', ' ')} UTC"
