"""What a study has found so far: its trials, its measurements and its front. Reads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from moopt import conditions, never_worse, pareto
from moopt.errors import NoFeasibleTrial, StudyError
from moopt.executors.base import WorkerState
from moopt.jobs import Failure, Job
from moopt.problem import Constraint, Evaluation, Objective, is_finite
from moopt.space import Config

TrialState = Literal["running", "complete", "failed", "pruned"]


@dataclass
class Trial:
    """One candidate and what became of it.

    Attributes:
        number: Counted from 0 within the study.
        attempts: How often its evaluation was begun.
        failures: How many of the attempts failed, or ended with the process they ran in.
        values: Every objective and constraint of a completed trial, known ones included.
        violations: value - bound of every constraint.
        seconds: What its evaluation took.
        tokens: What its evaluation cost, in forward tokens.
        screened: Whether it has been screened so far, and not evaluated.
        ended: When its evaluation ended, by the clock of who stored that; None where that is not known.
    """

    number: int
    config: Config
    state: TrialState = "running"
    values: dict[str, float] = field(default_factory=dict)
    violations: dict[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    failure: Failure | None = None
    label: str | None = None
    attempts: int = 1
    failures: int = 0
    seconds: float = 0.0
    tokens: int = 0
    screened: bool = False
    ended: datetime | None = field(default=None, compare=False)

    @property
    def feasible(self) -> bool:
        """Complete, and every constraint holds."""
        return self.state == "complete" and all(v <= 0 for v in self.violations.values())

    def variance(self, name: str) -> float:
        """The variance of a value's error; NaN where none was measured."""
        given = self.evaluation.variances if self.evaluation else None
        return float((given or {}).get(name, np.nan))


@dataclass(frozen=True)
class Event:
    """An entry of the log that a study is rebuilt from: a job's issue, or what came of it.

    Attributes:
        seq: The coordinator's counter; the jobs of one batch share it.
    """

    seq: int
    job: Job
    outcome: Evaluation | Failure | None = None
    seconds: float = 0.0
    tokens: int = 0


@dataclass
class History:
    """A study as it stands, whether it runs here, ran elsewhere or is read from a storage.

    Attributes:
        name: The study's name.
        meta: What was stored when it was created: space, decisions, identity, environment, seed, algorithm.
        trials: All trials by number.
        events: The log, in the order of `seq`.
        measures: What finished trials measured on other data, by (number, purpose).
        unbegun: How many trials have been screened, and never evaluated.
        workers: What the workers do, if the study runs.
        pulse: How the run stood when that was last noted: `at`, `host`, `process`, `ended` if it has.
    """

    name: str
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    measures: dict[tuple[int, str], Evaluation] = field(default_factory=dict)
    unbegun: int = 0
    workers: Sequence[WorkerState] = ()
    pulse: Mapping[str, Any] = field(default_factory=dict)

    def feasible(self) -> list[Trial]:
        """The completed trials that satisfy every constraint."""
        return [trial for trial in self.trials if trial.feasible]

    def values(self, trials: Iterable[Trial]) -> pareto.FloatArray:
        """Objectives of trials, signs turned to be minimised, [n, m]."""
        return pareto.minimised([trial.values for trial in trials], self.objectives)

    def baselines(self) -> list[Trial]:
        """The feasible trials that the study was given, such as uniform widths and the knapsacks of its opening."""
        return [trial for trial in self.feasible() if trial.label is not None]

    def nondominated(self) -> list[Trial]:
        """The feasible trials that no other dominates by what the search measured, in the order of `front`."""
        return self._undominated(self.feasible())

    def replaced(self) -> dict[int, Trial]:
        """The trials that a baseline beats on validation data, by number, each with the baseline in its place.

        See `moopt.never_worse.replacements`; empty where nothing was measured on validation data.
        """
        validated = {n: found for (n, purpose), found in self.measures.items() if purpose == never_worse.VALIDATION}
        return never_worse.replacements(self.feasible(), self.objectives, validated) if validated else {}

    def verdict(self) -> never_worse.Verdict | None:
        """How many points of the front baselines replaced; None where the problem has no validation data."""
        return never_worse.verdict(self)

    def front(self) -> list[Trial]:
        """The best trade-offs, by the first known objective, else by the first.

        They are the feasible trials that no other dominates, those left out that are `replaced`: so baselines come in.
        """
        return self._undominated(self._shown())

    def reference(self, given: Mapping[str, float] | None = None) -> pareto.FloatArray:
        """The reference point [m], signs turned: given, preferred, declared by the objectives, else inferred.

        Inferred parts come from the baselines where there are any, so that they stay while a search goes on. What is
        preferred is the reference of the `Preference` that the study was begun with.
        """
        if not isinstance(given, Mapping | None):
            raise StudyError(f"The reference is {given!r}; expected a number for each objective's name.")
        if unknown := sorted(set(given or ()) - {o.name for o in self.objectives}):
            raise StudyError(f"The reference names {', '.join(unknown)}; expected one of {', '.join(self._names)}.")
        if bad := [f"{name} = {value!r}" for name, value in (given or {}).items() if not is_finite(value)]:
            raise StudyError(f"The reference has {', '.join(bad)}; expected finite numbers.")
        preferred = self.meta.get("identity", {}).get("preference", {}).get("reference", {})
        declared = [{o.name: o.reference, **preferred, **(given or {})}[o.name] for o in self.objectives]
        signed = [None if d is None else d * o.sign for d, o in zip(declared, self.objectives, strict=True)]
        trials = self.feasible()
        opening = [trial for trial in trials if trial.label is not None] or trials
        if not opening and None in signed:
            raise NoFeasibleTrial("No trial is complete and feasible yet, so no reference point can be inferred.")
        if None not in signed:
            return np.array(signed, dtype=float)
        return pareto.reference_point(self.values(opening), signed)

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """The volume that the feasible trials dominate by what the search measured, up to the reference point."""
        trials = self.feasible()
        return pareto.hypervolume(self.values(trials), self.reference(reference)) if trials else 0.0

    def knee(self) -> Trial:
        """The front's point of the best trade-off: see `moopt.pareto.knee`."""
        front = self.front()
        if not front:
            raise NoFeasibleTrial(f"The study {self.name!r} has no complete and feasible trial yet.")
        return front[pareto.knee(self.values(front))]

    def pick(self, condition: str) -> Trial:
        """The best trial under a bound, such as "size_mb <= 80" or "kl <= 0.1 and size_mb <= 100".

        Best is the least of the first objective that the condition does not bound (in its direction); ties go to the
        next objectives. What is `replaced` is never it.

        Raises:
            StudyError: the condition cannot be read.
            NoFeasibleTrial: no trial satisfies it; says what the nearest is.
        """
        bounds = list(conditions.bounds(condition, self._names, f"objective or constraint of {self.name!r}"))
        bounded = {bound.name for bound in bounds}
        order = sorted(self.objectives, key=lambda o: o.name in bounded)
        trials = [t for t in self._shown() if all(bound.holds(t.values[bound.name]) for bound in bounds)]
        if not trials:
            raise NoFeasibleTrial(f"No trial of {self.name!r} satisfies {condition!r}; {self._ranges()}.")
        return min(trials, key=lambda t: [t.values[o.name] * o.sign for o in order])

    def frame(self, trials: Sequence[Trial] | None = None) -> pd.DataFrame:
        """A table of trials: number, baseline, state, objectives, constraints, measurements, seconds and tokens."""
        purposes = sorted({purpose for _, purpose in self.measures})
        names = [o.name for o in self.objectives] + [c.name for c in self.constraints]
        rows = []
        for trial in self.trials if trials is None else trials:
            row: dict[str, Any] = {"trial": trial.number, "baseline": trial.label or "", "state": trial.state}
            row |= {name: trial.values.get(name, np.nan) for name in dict.fromkeys(names)}
            for purpose in purposes:
                if found := self.measures.get((trial.number, purpose)):
                    row |= {f"{name} ({purpose})": value for name, value in found.values.items()}
            rows.append({**row, "seconds": trial.seconds, "tokens": trial.tokens})
        return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()

    def under_way(self) -> list[Job]:
        """The jobs that were begun and have not ended, in a run that goes on or in one that was cut short."""
        ended = {event.job.identity for event in self.events if event.outcome is not None}
        open_ = (e.job for e in self.events if e.outcome is None and e.job.kind != "prune")
        return [job for job in open_ if job.identity not in ended]

    @property
    def begun(self) -> int:
        """How many trials have been evaluated or are being so: those that are screened or were pruned do not count."""
        return len(self.trials) - self.unbegun

    @property
    def tokens(self) -> int:
        """Everything the study has cost so far, in forward tokens."""
        return sum(event.tokens for event in self.events)

    def _ordered(self, trials: Iterable[Trial]) -> list[Trial]:
        """By the first known objective, else by the first."""
        by = next((o for o in self.objectives if o.known), self.objectives[0])
        return sorted(trials, key=lambda trial: trial.values[by.name] * by.sign)

    def _shown(self) -> list[Trial]:
        """The feasible trials that are not replaced."""
        replaced = self.replaced()
        return [trial for trial in self.feasible() if trial.number not in replaced]

    def _undominated(self, trials: Sequence[Trial]) -> list[Trial]:
        kept = pareto.nondominated(self.values(trials))
        return self._ordered(t for t, on in zip(trials, kept, strict=True) if on)

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys([*(o.name for o in self.objectives), *(c.name for c in self.constraints)]))

    def _ranges(self) -> str:
        replaced = self.replaced()
        trials = [trial for trial in self.feasible() if trial.number not in replaced]
        if not trials:
            return "no trial is complete and feasible yet"
        column = {o.name: [t.values[o.name] for t in trials] for o in self.objectives}
        return "the trials reach " + ", ".join(f"{n} {min(v):.4g} to {max(v):.4g}" for n, v in column.items())
