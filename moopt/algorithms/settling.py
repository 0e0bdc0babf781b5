"""Settling some decisions first: those of one kind by themselves, before the search over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moopt import pareto
from moopt.algorithms.base import Algorithm
from moopt.algorithms.qnehvi import QNEHVI
from moopt.jobs import Job, Outcome
from moopt.preference import Preference
from moopt.problem import Evaluation, Fidelity, Problem
from moopt.space import Config, Space

TRIALS, MOST = 6, 16
"""Trials for each decision that is settled, those of baselines included, and how many they are at most."""

NOTE = "settling"
"""Where a job has the note that the search by itself made."""


class Alone(Problem):
    """Some decisions of a problem by themselves, judged by what is measured; all others are fixed.

    Args:
        whole: The problem.
        names: The decisions.
        fixed: A configuration of the problem, with what all others are.
    """

    def __init__(self, whole: Problem, names: Sequence[str], fixed: Config) -> None:
        self.problem, self.fixed = whole, fixed
        chosen = set(names)
        joined = {name: simplex.variables(name) for name, simplex in whole.space.simplexes.items()}
        shares = {variable for variables in joined.values() for variable in variables}
        self.space = Space(
            {name: whole.space.simplexes[name] for name, variables in joined.items() if chosen >= variables.keys()}
            | {name: variable for name, variable in whole.space.items() if name in chosen - shares}
        )
        self.objectives = [objective for objective in whole.objectives if not objective.known]
        self.constraints = whole.constraints
        self.fidelity = whole.fidelity

    def whole(self, config: Config) -> Config:
        """The problem's configuration with such decisions."""
        return {**self.fixed, **config}

    def own(self, config: Config) -> Config | None:
        """The decisions in a configuration of the problem; None where any other is not as it is fixed."""
        found = {name: config[name] for name in self.space.names}
        return found if self.whole(found) == config else None

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        return self.problem.evaluate(self.whole(config), fidelity)

    def known(self, config: Config) -> Mapping[str, float]:
        return self.problem.known(self.whole(config))


class Settling(Algorithm):
    """Looks for the best of the decisions that a problem wants settled `first`, all others fixed.

    With several measured objectives it is the one nearest to the best of each, or by the weights of a preference.

    Args:
        fixed: A configuration with what all others are.
        preference: Weights of the objectives, if it has some.
    """

    def __init__(self, fixed: Config, preference: Preference | None = None) -> None:
        self.fixed, self.preference = fixed, preference

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._alone = Alone(problem, problem.first, self.fixed)
        decisions = len(self._alone.space)
        self._left = int(min(TRIALS * decisions, MOST, self._alone.space.size))
        self._search = QNEHVI(initial=min(2 * decisions, self._left // 3 + 1))
        self._search.start(self._alone, seed)
        if self.preference is not None:
            self._search.archive.region = self.preference.region(self._alone)
        self._open: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether all its trials are told."""
        return self._left <= 0 and not self._open

    @property
    def waiting(self) -> bool:
        """Whether some of its trials are under way."""
        return bool(self._open)

    @property
    def best(self) -> Config:
        """The configuration with the best it has found; with none what it began from."""
        archive = self._search.archive
        feasible = [place for place, broken in enumerate(archive.broken) if broken <= 0]
        if not feasible:
            return self.fixed
        points = np.array([archive.points[place] for place in feasible])
        front = np.flatnonzero(pareto.nondominated(points))
        worth = pareto.chebyshev(pareto.scaled(points[front], points[front]), self._weights())
        return self._alone.whole(archive.jobs[feasible[front[int(worth.argmin())]]].config)

    def _weights(self) -> list[float]:
        """What each measured objective counts: what is preferred, or all the same."""
        given = (self.preference and self.preference.weights) or {}
        found = [given.get(objective.name, 0.0) for objective in self._alone.objectives]
        return found if any(found) else [1.0] * len(found)

    def ask(self, n: int) -> list[Job]:
        found = self._search.ask(min(n, self._left)) if self._left > 0 else []
        return [
            replace(job, trial=trial, config=self._alone.whole(job.config), note=_noted(job.note))
            for trial, job in enumerate(found, self.next_trial)
        ]

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        own = self._own(jobs)
        self._search.issued(own)
        self._open |= {job.trial for job in own}
        self._left -= len(own)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, outcome in outcomes:
            for own in self._own([job]):
                self._search.tell([(own, outcome)])
                self._open.discard(own.trial)

    def _own(self, jobs: Sequence[Job]) -> list[Job]:
        """The evaluations among jobs that tell something of the decisions alone, as jobs of theirs."""
        configs = [self._alone.own(job.config) if job.kind == "evaluate" else None for job in jobs]
        return [
            replace(job, config=own, note=job.note.get(NOTE, {}))
            for job, own in zip(jobs, configs, strict=True)
            if own is not None
        ]


def _noted(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note that the search over all does not take for one of its own; what was predicted stays where it is."""
    return {NOTE: note, **{name: note[name] for name in ("predicted",) if name in note}}
