"""Asks the algorithm, stores, dispatches and tells: the only writer of a study while it runs.

Store first, then tell: what the algorithm knows can always be rebuilt from what is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace

from moopt.algorithms.base import Algorithm
from moopt.errors import StudyError
from moopt.executors import Executor
from moopt.history import Event, History, Trial
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem
from moopt.storage import StoredStudy

logger = logging.getLogger("moopt")

Watcher = Callable[[History, Event], None]
"""Called after every stored event, to show progress."""


class Coordinator:
    """Runs one study on one executor.

    Args:
        stored: Where events are written before anything else learns of them.
        history: What is stored already; kept up to date.
        watch: Called after each event.
    """

    def __init__(
        self, problem: Problem, algorithm: Algorithm, seed: int, stored: StoredStudy, history: History,
        executor: Executor, watch: Watcher | None = None,
    ) -> None:  # fmt: skip
        self._problem, self._algorithm, self._stored = problem, algorithm, stored
        self._history, self._executor, self._watch = history, executor, watch
        self._running: dict[Future[Outcome], tuple[Job, float]] = {}
        algorithm.start(problem, seed)
        self._replay()
        self._seq = max((event.seq for event in history.events), default=-1) + 1

    def run(self, trials: int) -> None:
        """Go on until the study has that many finished trials, or nothing is left to ask."""
        for job in self._interrupted():
            self._dispatch(job)
        while self._room(trials) or self._running:
            jobs = self._algorithm.ask(self._room(trials)) if self._room(trials) else []
            if jobs:
                self._issue(jobs)
            elif not self._running:
                logger.warning(
                    "Nothing new is left to try after %d trials: the space, or what the known constraints leave of it, "
                    "is exhausted.", len(self._history.trials),
                )  # fmt: skip
                return
            self._collect(block=not jobs or len(self._running) >= self._executor.capacity)

    def measure(self, jobs: Sequence[Job]) -> None:
        """Measure finished trials on other data; what was measured before is not measured again."""
        for job in jobs:
            if (job.trial, str(job.fidelity.batch)) not in self._history.measures:
                self._issue([job], tell=False)
                self._collect(block=True)

    def _room(self, trials: int) -> int:
        """How many jobs may be started now."""
        issued = len(self._history.trials)
        return max(0, min(self._executor.capacity - len(self._running), trials - issued))

    def _replay(self) -> None:
        """Rebuild the algorithm's state from the log: batches as they were issued, outcomes as they were told."""
        batch: list[Event] = []
        for event in self._history.events:
            if event.job.kind == "measure":
                continue
            if batch and (event.outcome is not None or event.seq != batch[0].seq):
                self._algorithm.issued([e.job for e in batch])
                batch = []
            if event.outcome is None:
                batch.append(event)
            else:
                self._algorithm.tell([(event.job, event.outcome)])
        if batch:
            self._algorithm.issued([e.job for e in batch])

    def _interrupted(self) -> list[Job]:
        """Jobs that were dispatched but never finished: they are done again under their number."""
        done = {_identity(e.job) for e in self._history.events if e.outcome is not None}
        jobs = [e.job for e in self._history.events if e.outcome is None and e.job.kind != "measure"]
        again = [job for job in jobs if _identity(job) not in done]
        for job in again:
            if job.kind == "evaluate":
                trial = self._history.trials[job.trial]
                trial.attempts += 1
                self._stored.attempt(trial)
        return again

    def _issue(self, jobs: Sequence[Job], *, tell: bool = True) -> None:
        space = self._problem.space
        for job in jobs:
            known = self._problem.known(job.config) if job.kind == "evaluate" else {}
            self._stored.issue(self._seq, job, space, known)
            if job.kind == "evaluate":
                self._history.trials.append(Trial(job.trial, job.config, label=job.label))
            self._history.events.append(Event(self._seq, job))
        self._seq += 1
        if tell:
            self._algorithm.issued(jobs)
        for job in jobs:
            self._dispatch(job)

    def _dispatch(self, job: Job) -> None:
        started = time.perf_counter()
        self._running[self._executor.submit(job)] = (job, started)

    def _collect(self, *, block: bool) -> None:
        """Store and tell what has ended; wait for at least one if `block`."""
        ended = wait(self._running, timeout=None if block else 0, return_when=FIRST_COMPLETED).done
        for future in sorted(ended, key=lambda f: self._running[f][0].trial):
            job, started = self._running.pop(future)
            self._finish(job, future.result(), time.perf_counter() - started)

    def _finish(self, job: Job, outcome: Outcome, seconds: float) -> None:
        if job.kind == "sensitivity" and isinstance(outcome, Failure):  # not stored, so that the next run tries again
            raise StudyError(f"The sensitivities could not be computed: {outcome.message}")
        event = Event(self._seq, job, outcome, seconds, self._tokens(job, outcome))
        self._seq += 1
        trial = self._history.trials[job.trial] if job.kind == "evaluate" else None
        if trial is not None:
            self._conclude(trial, event)
        self._stored.finish(event, trial, list(self._problem.objectives))
        self._history.events.append(event)
        if isinstance(outcome, Failure):
            logger.warning("%s failed: %s", _described(job), outcome.message)
        elif job.kind == "measure":
            self._history.measures[job.trial, str(job.fidelity.batch)] = outcome
        if job.kind != "measure":
            self._algorithm.tell([(job, outcome)])
        if self._watch:
            self._watch(self._history, event)

    def _conclude(self, trial: Trial, event: Event) -> None:
        trial.seconds, trial.tokens = event.seconds, event.tokens
        if isinstance(event.outcome, Failure):
            trial.state, trial.failure = "failed", event.outcome
            return
        assert event.outcome is not None
        trial.state, trial.evaluation = "complete", event.outcome
        trial.values = {**self._problem.known(trial.config), **event.outcome.values}
        trial.violations = {c.name: trial.values[c.name] - c.bound for c in self._problem.constraints}

    def _tokens(self, job: Job, outcome: Outcome) -> int:
        """What a job cost in forward tokens: what it reports, else what the problem says of its kind."""
        usual = self._problem.forward_tokens(job.kind, job.fidelity)
        return usual if isinstance(outcome, Failure) else int(outcome.attributes.get("forward_tokens", usual))


def _identity(job: Job) -> tuple[int, str, object]:
    return job.trial, job.kind, job.fidelity


def _described(job: Job) -> str:
    return f"Trial {job.trial}" if job.kind == "evaluate" else f"The {job.kind} job of trial {job.trial}"


def measurements(problem: Problem, trials: Sequence[Trial], purpose: str) -> list[Job]:
    """The jobs that measure trials for a purpose the problem declares.

    Raises:
        StudyError: the problem declares no such purpose.
    """
    if purpose not in problem.measurements:
        raise StudyError(
            f"The problem has no measurement {purpose!r}; expected one of {', '.join(problem.measurements) or 'none'}."
        )
    fidelity = replace(problem.measurements[purpose], batch=purpose)
    return [Job(trial.number, trial.config, "measure", fidelity) for trial in trials]
