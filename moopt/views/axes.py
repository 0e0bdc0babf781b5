"""Which objective goes on which axis, and how a measured value is found there. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moopt.history import History, Trial
from moopt.problem import Objective

HELD_OUT = "held-out"
"""The purpose of the measurements that nothing was selected on."""

NINETY_FIVE = 1.96
"""Standard deviations to each side of a normal number's mean that hold 95% of it."""


@dataclass(frozen=True)
class Axes:
    """The places of a study's objectives.

    Attributes:
        x: The first known objective, else the first.
        y: The first measured one of the rest, else the first of the rest; None with a single objective.
        colour: The next one; None with two objectives.
    """

    x: Objective
    y: Objective | None
    colour: Objective | None

    @property
    def main(self) -> Objective:
        """What is compared: y, or the only objective."""
        return self.y or self.x


def axes(history: History) -> Axes:
    """Give every objective its place."""
    objectives = list(history.objectives)
    x = next((o for o in objectives if o.known), objectives[0])
    rest = [o for o in objectives if o is not x]
    y = next((o for o in rest if not o.known), rest[0] if rest else None)
    colour = next((o for o in rest if o is not y), None)
    return Axes(x, y, colour)


def logarithmic(values: Iterable[float]) -> bool:
    """Whether values are all positive and span more than a decade."""
    found = np.array([v for v in values if np.isfinite(v)], dtype=float)
    return bool(len(found) and found.min() > 0 and found.max() / found.min() > 10)


def around(values: Iterable[float], share: float = 0.05) -> list[float]:
    """What an axis shows of values, with a margin; in powers of ten where they are `logarithmic`. Empty for none."""
    every = list(values)
    found = np.array([v for v in every if np.isfinite(v)], dtype=float)
    if not len(found):
        return []
    placed = np.log10(found) if logarithmic(every) else found
    low, high = float(placed.min()), float(placed.max())
    margin = share * ((high - low) or abs(low) or 1.0)
    return [low - margin, high + margin]


def held_out(history: History, trial: Trial, objective: Objective) -> float:
    """A trial's value on held-out data; the exact one for a known objective; NaN if it was not measured."""
    if objective.known:
        return trial.values[objective.name]
    measured = history.measures.get((trial.number, HELD_OUT))
    return float("nan") if measured is None else measured.values.get(objective.name, float("nan"))


def half_width(trial: Trial, objective: Objective) -> float:
    """Half the 95% interval of a trial's measured value; 0 where its error is known exactly or not at all."""
    if objective.known or trial.evaluation is None:
        return 0.0
    variance, samples = trial.variance(objective.name), (trial.evaluation.samples or {}).get(objective.name, ())
    if not np.isfinite(variance) and len(samples) > 1 and np.isclose(np.mean(samples), trial.values[objective.name]):
        variance = float(np.var(samples, ddof=1) / len(samples))
    return float(NINETY_FIVE * np.sqrt(variance)) if variance > 0 and np.isfinite(variance) else 0.0


def held_out_label(objective: Objective) -> str:
    """The column of an objective's held-out values, with its unit."""
    return f"{objective.name} {HELD_OUT} [{objective.unit}]" if objective.unit else f"{objective.name} {HELD_OUT}"


def evenly(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most so many of trials that are in an order, evenly along it, both ends included."""
    return [trials[i] for i in sorted({round(i) for i in np.linspace(0, len(trials) - 1, min(len(trials), most))})]


def baselines(history: History) -> list[Trial]:
    """The feasible trials that the study was given, by the objective on x."""
    by = axes(history).x
    return sorted(history.baselines(), key=lambda trial: trial.values[by.name] * by.sign)


def is_uniform(trial: Trial) -> bool:
    """Whether it is a baseline that treats every decision alike: its label starts with "uniform"."""
    return (trial.label or "").startswith("uniform")
