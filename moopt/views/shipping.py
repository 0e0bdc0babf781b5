"""The card that answers what to ship: the best point within each of some round budgets, and what it gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd

from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look
from moopt.views.axes import axes, baselines, held_out, held_out_label, is_uniform, logarithmic
from moopt.views.card import Card, nothing_yet

TITLE = "What to ship"
KNEE = "the best trade-off"
WANTED, RIVAL, GAIN, COMMAND = "you want", "beside", "better by [%]", "what exports it"
MOST_STEPS = 9
"""Round numbers that the front's span may hold; of more, coarser ones are taken."""


class Choice(NamedTuple):
    """A point that one may want, and what there was without a search.

    Attributes:
        wish: What it is the best for, in words.
        trial: The point.
        rival: The best baseline that fulfils the wish too, the point itself if it is one; None if there is none.
    """

    wish: str
    trial: Trial
    rival: Trial | None


def shipping_data(history: History) -> pd.DataFrame:
    """One row for the knee and for each of the `budgets`: what `History.pick` gives, beside the best baseline within.

    Uniform baselines go before others; a point that is the best of them stands beside itself. An objective is told on
    held-out data if every point and every baseline of the table is measured there, else as the search saw it, and
    `better by [%]`, of what is `wanted`, is relative to the baseline's value.
    """
    x, main, found = axes(history).x, wanted(history), list(choices(history))
    compared = [trial for choice in found for trial in (choice.trial, choice.rival) if trial is not None]
    told = {o.name: _told(history, o, compared) for o in sorted(history.objectives, key=lambda o: not o.known)}
    label, value = told[main.name]
    rows = []
    for wish, trial, rival in found:
        row: dict[str, Any] = {WANTED: wish, "trial": trial.number}
        row |= {name: figure(trial) for name, figure in told.values()}
        ours, theirs = value(trial), math.nan if rival is None else value(rival)
        row[RIVAL] = "" if rival is None else _named(rival, x, main)
        row |= {f"its {label}": theirs, GAIN: 100 * (theirs - ours) * main.sign / abs(theirs) if theirs else math.nan}
        row[COMMAND] = export_command(trial)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table if any(table[RIVAL]) else table.drop(columns=[RIVAL, f"its {label}", GAIN])


def shipping_card(history: History) -> Card:
    """Which point to ship within each budget, what it gains, and the command that exports it."""
    x, main = axes(history).x, wanted(history)
    best = f"the {'lowest' if main.direction == 'min' else 'highest'} {look.plain(main)}"
    within = f" within a bound on {look.plain(x)}" if main is not x else ""
    sentence = (
        f"Each line is the feasible candidate of {best}{within}, beside the best baseline that one could have had "
        "without a search, and the command that exports it, with your study's file for STUDY and what your server "
        "loads for FORMAT."
    )
    reason = nothing_yet(history)
    return Card(TITLE, sentence, reason=reason) if reason else Card(TITLE, sentence, shipping_data(history))


def export_command(trial: Trial) -> str:
    """What exports a trial in a shell; the study's own file stands for STUDY, what its server loads for FORMAT."""
    return f"moopt export STUDY --trial {trial.number} --format FORMAT --out served"


def wanted(history: History) -> Objective:
    """What `History.pick` makes best under a bound on the objective on x; the only objective if there is one."""
    x = axes(history).x
    return next((o for o in history.objectives if o is not x), x)


def choices(history: History) -> Iterator[Choice]:
    """The knee, then the best point within each budget; budgets beside each other that have the same one are one."""
    x, knee = axes(history).x, history.knee()
    yield Choice(KNEE if wanted(history) is not x else "the best", knee, _rival(history, knee.values[x.name]))
    side, operator = ("most", "<=") if x.direction == "min" else ("least", ">=")
    picked = ((history.pick(f"{x.name} {operator} {b:.12g}"), _rival(history, b), b) for b in budgets(history))
    for _, same in groupby(picked, key=lambda each: (each[0].number, each[1] and each[1].number)):
        found = list(same)
        (trial, rival, _), (low, high) = found[0], sorted([found[0][2], found[-1][2]])
        span = look.amount(high, x.unit) if low == high else f"{look.number(low)} to {look.amount(high, x.unit)}"
        yield Choice(f"{'' if x.unit else look.plain(x) + ' '}at {side} {span}", trial, rival)


def budgets(history: History) -> list[float]:
    """Round numbers along the front's values on x, tightest first; the last takes in all. None for a single value."""
    x = axes(history).x
    values = [value for trial in history.front() if math.isfinite(value := trial.values[x.name])]
    if len(set(values)) < 2:
        return []
    ticks = sorted(_ticks(values), key=lambda tick: tick * x.sign)
    tightest, loosest = (end(value * x.sign for value in values) for end in (min, max))
    reached = [tick for tick in ticks if tick * x.sign >= tightest]
    return [tick for tick in reached if tick * x.sign < loosest] + [t for t in reached if t * x.sign >= loosest][:1]


def _ticks(values: list[float]) -> list[float]:
    """Round numbers from below the least value to above the greatest; in decades where `logarithmic`."""
    low, high = min(values), max(values)
    if logarithmic(values):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        parts = (1, 2, 5) if 3 * len(decades) <= 2 * MOST_STEPS else (1,)
        return [float(f"{part}e{decade}") for decade in decades for part in parts]
    decade = 10.0 ** math.floor(math.log10((high - low) / MOST_STEPS))
    step = next(part * decade for part in (1, 2, 5, 10) if (high - low) / (part * decade) <= MOST_STEPS)
    return [float(f"{i * step:.12g}") for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _rival(history: History, bound: float) -> Trial | None:
    """The best baseline within a bound on x, if there is another objective; of uniform ones if there are any."""
    x, main = axes(history).x, wanted(history)
    within = [t for t in baselines(history) if main is x or t.values[x.name] * x.sign <= bound * x.sign]
    taken = [t for t in within if is_uniform(t)] or within
    return min(taken, key=lambda t: t.values[main.name] * main.sign, default=None)


def _told(history: History, objective: Objective, trials: Sequence[Trial]) -> tuple[str, Callable[[Trial], float]]:
    """The heading of an objective's column, and its value of a trial: on held-out data if all are measured there."""
    if not objective.known and all(math.isfinite(held_out(history, trial, objective)) for trial in trials):
        return held_out_label(objective), lambda trial: held_out(history, trial, objective)
    return objective.label, lambda trial: trial.values[objective.name]


def _named(rival: Trial, x: Objective, main: Objective) -> str:
    """A baseline's name, and where it is on x if that is another objective."""
    return f"{rival.label} ({look.amount(rival.values[x.name], x.unit)})" if main is not x else rival.label or ""
