"""A fidelity ladder for any algorithm: candidates are screened on few tokens, and surely dominated ones pruned.

Successive halving for several objectives, but by evidence and not by rank: nothing is pruned that may be on the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt import paired
from moopt.algorithms.base import Algorithm, Archive, rungs_of
from moopt.errors import AlgorithmError, ProblemError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Fidelity, Problem, known_values

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.99
"""Of each paired test: 1 in 100 candidates that are as good as another one is lost to it."""


@dataclass
class Climber:
    """A candidate on its way up.

    Attributes:
        job: The evaluation that the wrapped algorithm asked for.
        known: Its known objectives, signs turned to be minimised, [k].
        rung: The next one: a number of the ladder's rungs, or how many there are for the evaluation.
        open: Whether a job of it is under way.
        dominated: What it was found to be at most, once it is to be pruned.
    """

    job: Job
    known: FloatArray
    rung: int = 0
    open: bool = True
    dominated: Evaluation | None = None


class Ladder(Algorithm):
    """Screens what another algorithm asks for, and evaluates what is not surely dominated.

    Screens use the beginning of the problem's own minibatch, so that a candidate is compared with everything measured
    before on the sequences they share, at no cost. It is pruned where some other costs no more in every known
    objective and is lower in every measured one, by a paired test over the sequences. The wrapped algorithm is then
    told what the pairs say of it: the other's values, and the mean differences from them.

    What cannot be screened is evaluated. The problem's evaluations must have `samples` of all measured objectives, or
    nothing is ever sure.

    Args:
        algorithm: An algorithm, or the name of one.
        rungs: Tokens of the screens, the fewest first; None: `problem.rungs`.
        confidence: What the paired test has to reach, between 0.5 and 1.
    """

    screens = True

    def __init__(
        self,
        algorithm: Algorithm | str = "nsga2",
        rungs: Sequence[int] | None = None,
        confidence: float = CONFIDENCE,
    ) -> None:
        from moopt.algorithms import create

        self.algorithm = create(algorithm) if isinstance(algorithm, str) else algorithm
        if not isinstance(self.algorithm, Algorithm):
            raise AlgorithmError(f"algorithm is {algorithm!r}; expected an algorithm, or the name of one.")
        if self.algorithm.screens:
            raise AlgorithmError(f"{type(self.algorithm).__name__} screens by itself; expected an algorithm without.")
        self.requires = self.algorithm.requires  # type: ignore[misc]  # what it wraps decides
        self.rungs = None if rungs is None else rungs_of(rungs)
        if isinstance(confidence, bool) or not isinstance(confidence, float) or not 0.5 < confidence < 1:
            raise AlgorithmError(f"confidence is {confidence!r}; expected a number above 0.5 and below 1.")
        self.confidence = confidence

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self.algorithm.start(problem, seed)
        rungs, most = list(problem.rungs) if self.rungs is None else self.rungs, problem.fidelity.tokens
        if not rungs or sorted({*rungs, most}) != [*rungs, most]:
            raise AlgorithmError(
                f"The rungs are {rungs}; expected one or several numbers of tokens, ever more, and all below the "
                f"problem's own {most}."
            )
        self._rungs = [Fidelity(tokens, problem.fidelity.batch) for tokens in rungs]
        self._climbers: dict[int, Climber] = {}
        self._rivals: list[tuple[FloatArray, Evaluation]] = []

    @property
    def archive(self) -> Archive:
        """What the wrapped algorithm has: a preference's region is set there."""
        return self.algorithm.archive

    @archive.setter
    def archive(self, value: Archive) -> None:
        """Started with the wrapped algorithm."""

    def ask(self, n: int) -> list[Job]:
        pruned = [replace(c.job, kind="prune") for c in self._climbers.values() if c.dominated and not c.open]
        rising = [self._step(c) for c in self._climbers.values() if not c.dominated and not c.open][:n]
        asked = self.algorithm.ask(n - len(rising)) if len(rising) < n else []
        return [*pruned, *rising, *(self._first(job) for job in asked)]

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        rungs = problem.rungs if self.rungs is None else self.rungs
        return {**self.algorithm.extra_jobs(problem, trials), "screen": (trials, sum(rungs))}

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        new = []
        for job in jobs:
            climber = self._climbers.get(job.trial) if job.kind in ("evaluate", "screen", "prune") else None
            if job.kind == "prune" and climber is not None:
                del self._climbers[job.trial]
                assert climber.dominated is not None
                self.algorithm.tell([(climber.job, climber.dominated)])
            elif climber is not None:
                climber.open = True
            elif job.kind == "screen":
                first = replace(job, kind="evaluate", fidelity=self.problem.fidelity)
                known = self._known(job)
                assert known is not None
                self._climbers[job.trial] = Climber(first, known)
                new.append(first)
            else:
                new.append(job)
        if new:
            self.algorithm.issued(new)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            climber = self._climbers.get(job.trial)
            if job.kind == "screen" and climber is not None:
                self._screened(climber, outcome)
                continue
            if job.kind == "evaluate":
                self._climbers.pop(job.trial, None)
                known = self._known(job)
                if isinstance(outcome, Evaluation) and known is not None and not self._broken(job, outcome):
                    self._rivals.append((known, outcome))
            self.algorithm.tell([(job, outcome)])

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "algorithm": "Ladder", "wrapped": self.algorithm.settings()}

    def _first(self, job: Job) -> Job:
        """What a candidate that is asked for begins with; one without known values fails when it is evaluated."""
        screened = job.kind == "evaluate" and self._known(job) is not None
        return replace(job, kind="screen", fidelity=self._rungs[0]) if screened else job

    def _step(self, climber: Climber) -> Job:
        """A candidate's next job."""
        if climber.rung == len(self._rungs):
            return climber.job
        return replace(climber.job, kind="screen", fidelity=self._rungs[climber.rung])

    def _screened(self, climber: Climber, outcome: Outcome) -> None:
        climber.open, climber.rung = False, climber.rung + 1
        if isinstance(outcome, Failure):
            climber.rung = len(self._rungs)  # says nothing: the evaluation, which counts, will tell
            return
        for known, rival in self._rivals:
            if (known <= climber.known).all() and (found := self._beaten(outcome, rival)):
                climber.dominated = found
                return

    def _beaten(self, screen: Evaluation, rival: Evaluation) -> Evaluation | None:
        """What a screen says a candidate is, if it is surely above an evaluated one in all that is measured."""
        values, variances = dict(screen.values), dict[str, float]()
        for objective in (o for o in self.problem.objectives if not o.known):
            pair = self._pair(screen.samples or {}, rival.samples or {}, objective.name)
            if pair is None:
                return None
            ours, theirs = pair
            if not paired.surely_below(objective.sign * theirs, objective.sign * ours, self.confidence):
                return None
            apart = paired.difference(ours, theirs)
            values[objective.name] = rival.values[objective.name] + apart.mean
            variances[objective.name] = apart.error**2
        return Evaluation(values, variances)

    @staticmethod
    def _pair(
        screen: Mapping[str, Sequence[float]], rival: Mapping[str, Sequence[float]], name: str
    ) -> tuple[FloatArray, FloatArray] | None:
        """The samples of an objective on the sequences that a screen and an evaluation share, [s] each."""
        ours, theirs = screen.get(name, ()), rival.get(name, ())
        if not paired.FEWEST <= len(ours) <= len(theirs):
            return None
        return np.array(ours, dtype=float), np.array(theirs[: len(ours)], dtype=float)

    def _known(self, job: Job) -> FloatArray | None:
        """The known objectives of a candidate, signs turned to be minimised, [k]; None where they cannot be had."""
        try:
            values = known_values(self.problem, job.config)
        except ProblemError:
            return None
        return np.array([values[o.name] * o.sign for o in self.problem.objectives if o.known])

    def _broken(self, job: Job, outcome: Evaluation) -> bool:
        """Whether a constraint does not hold."""
        values = {**known_values(self.problem, job.config), **outcome.values}
        return any(c.excess(values[c.name]) > 0 for c in self.problem.constraints)
