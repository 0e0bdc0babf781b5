"""The held-out card: the front's figures on data that nothing was selected on, and the rule about baselines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moopt.history import History, Trial
from moopt.views.axes import HELD_OUT, axes, baselines, held_out, held_out_label
from moopt.views.card import Card, nothing_yet

TITLE = "All points of the front"
RULE = "a search never reports a point worse than a baseline it was given at the same size"


def replacements(history: History) -> dict[int, Trial]:
    """The front points that a baseline beats on held-out data, by number, each with the best such baseline.

    A baseline beats a point that it equals or betters in every objective, the known ones exact and the others held
    out, if it betters a measured one. What was not measured on held-out data neither beats nor is beaten.
    """
    measured = np.array([not o.known for o in history.objectives])
    main = axes(history).main
    rivals = [(trial, _vector(history, trial)) for trial in baselines(history)]
    found: dict[int, Trial] = {}
    for trial in history.front():
        own = _vector(history, trial)
        better = [t for t, other in rivals if (other <= own).all() and (other < own)[measured].any()]
        if better:
            found[trial.number] = min(better, key=lambda t: held_out(history, t, main) * main.sign)
    return found


def rule(history: History) -> str:
    """The rule, and how often it was needed."""
    replaced, front = len(replacements(history)), len(history.front())
    of = f"the {front} points" if front > 1 else "1 point"
    return f"the rule that {RULE} replaced {replaced or 'none'} of {of}"


def held_out_data(history: History) -> pd.DataFrame:
    """One row a reported point, by the objective on x: objectives as searched and held out, and what it replaces.

    `replaces` names the front points that a baseline stands for, see `replacements`.
    """
    front, replaced = history.front(), replacements(history)
    shown = {t.number: t for t in (replaced.get(trial.number, trial) for trial in front)}
    by = axes(history).x
    rows = []
    for trial in sorted(shown.values(), key=lambda t: t.values[by.name] * by.sign):
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
            f"nothing was selected on; {rule(history)}."
        )
    return Card(TITLE, sentence, held_out_data(history))


def _vector(history: History, trial: Trial) -> np.ndarray[Any, Any]:
    """Known objectives exact, the others held out, signs turned to be minimised, [m]; NaN compares as neither."""
    return np.array([held_out(history, trial, o) * o.sign for o in history.objectives], dtype=float)


def _further(history: History, trial: Trial) -> dict[str, float]:
    """What else was measured on held-out data anywhere in the study."""
    names = {n: None for (_, purpose), e in history.measures.items() if purpose == HELD_OUT for n in e.values}
    own = history.measures.get((trial.number, HELD_OUT))
    objectives = {o.name for o in history.objectives}
    return {f"{n} {HELD_OUT}": own.values.get(n, math.nan) if own else math.nan for n in names if n not in objectives}
