"""Which objective goes on which axis, and how a measured value is found there. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moopt.history import History, Trial
from moopt.problem import Objective

HELD_OUT = "held-out"
"""The purpose of the measurements that nothing was selected on."""


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


def held_out(history: History, trial: Trial, objective: Objective) -> float:
    """A trial's value on held-out data; the exact one for a known objective; NaN if it was not measured."""
    if objective.known:
        return trial.values[objective.name]
    measured = history.measures.get((trial.number, HELD_OUT))
    return float("nan") if measured is None else measured.values.get(objective.name, float("nan"))


def held_out_label(objective: Objective) -> str:
    """The column of an objective's held-out values, with its unit."""
    return f"{objective.name} {HELD_OUT} [{objective.unit}]" if objective.unit else f"{objective.name} {HELD_OUT}"


def baselines(history: History) -> list[Trial]:
    """The feasible trials that the study was given, by the objective on x."""
    by = axes(history).x
    return sorted(history.baselines(), key=lambda trial: trial.values[by.name] * by.sign)


def is_uniform(trial: Trial) -> bool:
    """Whether it is a baseline that treats every decision alike: its label starts with "uniform"."""
    return (trial.label or "").startswith("uniform")
