"""The held-out card: the front's figures on data that nothing was selected on, and what baselines replaced."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moopt.history import History, Trial
from moopt.views.axes import HELD_OUT, held_out, held_out_label
from moopt.views.card import Card, nothing_yet

TITLE = "All points of the front"


def verdict(history: History) -> str:
    """How many points the rule of `moopt.never_worse` replaced, as a sentence to add; empty without validation data."""
    found = history.verdict()
    return "" if found is None else f" {found}"


def held_out_data(history: History) -> pd.DataFrame:
    """One row a point of the front, by the objective on x: objectives as searched and held out, and what it replaces.

    `replaces` names the points that a baseline stands for: see `moopt.never_worse`.
    """
    rows, found = [], history.verdict()
    replaced = {} if found is None else found.replaced
    for trial in history.front():
        row: dict[str, Any] = {"trial": trial.number, "baseline": trial.label or ""}
        row |= {o.label: trial.values[o.name] for o in history.objectives if o.known}
        for objective in (o for o in history.objectives if not o.known):
            row[objective.label] = trial.values[objective.name]
            row[held_out_label(objective)] = held_out(history, trial, objective)
        row |= _further(history, trial)
        row["replaces"] = ", ".join(f"trial {n}" for n, by_it in replaced.items() if by_it.number == trial.number)
        rows.append(row)
    table = pd.DataFrame(rows)
    empty = [
        c for c in table if (c == "replaces" and not replaced) or (str(c).find(HELD_OUT) > 0 and table[c].isna().all())
    ]
    return table.drop(columns=empty)


def held_out_card(history: History) -> Card:
    """The table of the front's points with their held-out figures."""
    if reason := nothing_yet(history):
        return Card(TITLE, "The front's points with their figures on held-out data.", reason=reason)
    if not any((trial.number, HELD_OUT) in history.measures for trial in history.front()):
        sentence = (
            "Each line is one point of the front with the figures the search saw; none is measured on held-out data."
        )
    else:
        sentence = (
            "Each line is one point of the front, with the figures that the search saw and those on held-out data that "
            "nothing was selected on."
        )
    return Card(TITLE, sentence + verdict(history), held_out_data(history))


def _further(history: History, trial: Trial) -> dict[str, float]:
    """What else was measured on held-out data anywhere in the study."""
    names = {n: None for (_, purpose), e in history.measures.items() if purpose == HELD_OUT for n in e.values}
    own = history.measures.get((trial.number, HELD_OUT))
    objectives = {o.name for o in history.objectives}
    return {f"{n} {HELD_OUT}": own.values.get(n, math.nan) if own else math.nan for n in names if n not in objectives}
