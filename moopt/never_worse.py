"""The rule that a search never reports a point worse than a baseline it was given at the same size. Measures nothing.

Both are compared on validation data, which the search never saw; held-out data is for what is reported, and nothing is
selected on it. Only pairs that the search's own data leaves in doubt have to be measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moopt import pareto
from moopt.paired import surely_below
from moopt.problem import Evaluation, Objective

if TYPE_CHECKING:
    from moopt.history import History, Trial

VALIDATION = "validation"
"""The purpose of the measurements that front and baselines are compared by."""


@dataclass(frozen=True)
class Verdict:
    """What the rule did to a front.

    Attributes:
        points: How many points the front has by what the search measured.
        replaced: Those that a baseline replaced, by number, each with that baseline.
        unchecked: How many are in doubt beside a baseline and not both measured on validation data yet.
    """

    points: int
    replaced: Mapping[int, Trial]
    unchecked: int = 0

    def __str__(self) -> str:
        """The verdict as a sentence."""
        count, one = len(self.replaced), len(self.replaced) == 1 or self.points == 1
        of = f"{self.points:,} {'point' if self.points == 1 else 'points'} of the front"
        done = "was replaced by a baseline" if one else "were replaced by baselines"
        said = f"{count} of {of} {done} that did better on validation data"
        later = "is" if self.unchecked == 1 else "are"
        return f"{said}; {self.unchecked} {later} still to be checked." if self.unchecked else f"{said}."


def verdict(history: History) -> Verdict | None:
    """What the rule did to a study's front; None before there is one, and where the problem has no validation data."""
    names = {o.name for o in history.objectives if not o.known}
    found = {number: each for (number, purpose), each in history.measures.items() if purpose == VALIDATION}
    validated = {number for number, each in found.items() if names & each.values.keys()}
    front = history.nondominated()
    if not front or not (found or VALIDATION in history.meta.get("measurements", ())):
        return None
    replaced = history.replaced()
    doubted = _in_doubt(front, history.baselines(), history.objectives)
    unchecked = {point.number for point, baseline in doubted if not {point.number, baseline.number} <= validated}
    kept = {trial.number: replaced[trial.number] for trial in front if trial.number in replaced}
    return Verdict(len(front), kept, len(unchecked))


def contested(history: History) -> list[Trial]:
    """What to measure on validation data: the front's points that a baseline may replace, and these baselines."""
    found: dict[int, Trial] = {}
    for pair in _in_doubt(history.nondominated(), history.baselines(), history.objectives):
        found |= {trial.number: trial for trial in pair}
    return list(found.values())


def replacements(
    trials: Sequence[Trial], objectives: Sequence[Objective], validated: Mapping[int, Evaluation]
) -> dict[int, Trial]:
    """The trials that are not to be reported, by number, each with the baseline to report in its place.

    A trial loses to a baseline that costs no more in any known objective, is worse in no measured one and better in
    one, on validation data; in an objective that one of them lacks there, the search's values count. What was not
    measured itself, and is dominated by a loser by what the search saw, shares its fate, or it would take its place.

    Args:
        trials: The feasible ones.
        objectives: The problem's.
        validated: What was measured on validation data, by the trial's number.
    """
    measured = [o for o in objectives if not o.known]
    there = {n: f.values for n, f in validated.items() if any(o.name in f.values for o in measured)}

    def figures(trial: Trial, beside: Trial) -> tuple[float, ...]:
        both = there[trial.number].keys() & there[beside.number].keys()
        return tuple((there[trial.number] if o.name in both else trial.values)[o.name] * o.sign for o in measured)

    judged = {t.number: figures(t, t) for t in trials if t.number in there}
    found: dict[int, Trial] = {}
    for trial in (t for t in trials if t.number in judged):
        rivals = [t for t in trials if t.label and t.number in judged and _no_dearer(t, trial, objectives)]
        if better := [t for t in rivals if _dominates(figures(t, trial), figures(trial, t))]:
            found[trial.number] = min(better, key=lambda t: judged[t.number])
    for _ in range(len(found)):  # a baseline may lose to another one
        found = {number: found.get(heir.number, heir) for number, heir in found.items()}
    return {**found, **_followers(trials, objectives, found, judged)}


def _followers(
    trials: Sequence[Trial], objectives: Sequence[Objective], losers: Mapping[int, Trial],
    judged: Mapping[int, tuple[float, ...]],
) -> dict[int, Trial]:  # fmt: skip
    """The trials that are not judged and that a loser dominates, each with the best baseline of such losers."""
    if not losers:
        return {}
    at = pareto.minimised([t.values for t in trials], objectives)
    rows = [(at[i], losers[t.number]) for i, t in enumerate(trials) if t.number in losers]
    found = {}
    for trial, values in zip(trials, at, strict=True):
        if trial.label or trial.number in judged:
            continue
        if heirs := [baseline for loser, baseline in rows if (loser <= values).all()]:
            found[trial.number] = min(heirs, key=lambda t: judged[t.number])
    return found


def _in_doubt(
    front: Sequence[Trial], baselines: Sequence[Trial], objectives: Sequence[Objective]
) -> Iterator[tuple[Trial, Trial]]:
    """Points of the front with baselines at no more cost that they do not surely beat on the search's data."""
    measured = [o for o in objectives if not o.known]
    for point in front if measured else ():
        for baseline in baselines:
            if baseline.number == point.number or not _no_dearer(baseline, point, objectives):
                continue
            if not any(_surely_better(point, baseline, objective) for objective in measured):
                yield point, baseline


def _surely_better(trial: Trial, than: Trial, objective: Objective) -> bool:
    """Whether the values of the same sequences leave no doubt; false where there are none to compare."""
    own, other = (((t.evaluation and t.evaluation.samples) or {}).get(objective.name, ()) for t in (trial, than))
    if len(own) != len(other) or len(own) < 2:
        return False
    return surely_below(np.multiply(own, objective.sign), np.multiply(other, objective.sign))


def _no_dearer(trial: Trial, than: Trial, objectives: Sequence[Objective]) -> bool:
    """Whether a trial takes no more of any known objective."""
    return all(trial.values[o.name] * o.sign <= than.values[o.name] * o.sign for o in objectives if o.known)


def _dominates(values: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return values != others and all(a <= b for a, b in zip(values, others, strict=True))
