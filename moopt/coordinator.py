"""Asks the algorithm, stores, dispatches and tells: the only writer of a study while it runs.

Store first, then tell: what the algorithm knows can always be rebuilt from what is stored.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from moopt.algorithms.base import Algorithm, spent
from moopt.errors import AlgorithmError, ProblemError, StudyError
from moopt.executors import Executor, JobFuture
from moopt.history import Event, History, Trial
from moopt.jobs import SIZING, Failure, Job, Outcome
from moopt.problem import Problem, known_values
from moopt.records import worker_entry
from moopt.stopping import Stop, Stopwatch
from moopt.storage import StoredStudy

logger = logging.getLogger("moopt")

HOPELESS = 100
"""After so many screens that failed, one after the other, a run ends: no limit of trials counts them."""
DEATHS = 3
"""How often a candidate's evaluation may be under way when the process it runs in dies."""
PULSE = 5.0
"""Seconds between two notes in the storage of how the run stands."""
PATIENCE = 1.0
"""Seconds after which waiting for workers looks up."""

Watcher = Callable[[History, Event], None]
"""Called after every stored event, to show progress."""


@dataclass(frozen=True)
class _Errand:
    """A job on its way to a worker or on one.

    Attributes:
        failures: How often it failed before.
        started: When it was given to the executor.
    """

    job: Job
    failures: int = 0
    started: float = 0.0


class Coordinator:
    """Runs one study on one executor.

    Args:
        stored: Where events are written before anything else learns of them.
        history: What is stored already; kept up to date.
        retries: How often a job that fails is tried again on a fresh worker, where the executor has such.
        watch: Called after each event.
    """

    def __init__(
        self, problem: Problem, algorithm: Algorithm, seed: int, stored: StoredStudy, history: History,
        executor: Executor, retries: int = 1, watch: Watcher | None = None,
    ) -> None:  # fmt: skip
        self._problem, self._algorithm, self._stored = problem, algorithm, stored
        self._history, self._executor, self._retries, self._watch = history, executor, retries, watch
        self._waiting: deque[_Errand] = deque()
        self._running: dict[Future[Outcome], _Errand] = {}
        self._failing = 0
        self._beat = -math.inf
        self._interrupts, self._interruptible = 0, False
        algorithm.start(problem, seed)
        self._replay()
        self._seq = max((event.seq for event in history.events), default=-1) + 1

    def interrupt(self) -> None:
        """Once: `run` and `measure` return when what runs has ended. Twice: they are left at once.

        To be called by a signal's handler: what is being stored is stored first, if a third call does not insist.
        """
        self._interrupts += 1
        if self._interrupts > 2 or (self._interrupts == 2 and self._interruptible):
            raise KeyboardInterrupt

    @property
    def stopping(self) -> bool:
        """Whether nothing new is begun; what runs is finished."""
        return self._interrupts > 0

    @contextmanager
    def _left_at_once(self) -> Iterator[None]:
        """Where a second interrupt does no harm."""
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def run(self, stop: Stop) -> str | None:
        """Go on until a limit is reached, or nothing is left to ask; what runs then is finished.

        Returns:
            The limit that was reached, in words; None if it was the number of trials, or none.
        """
        self._waiting.extend(self._interrupted())
        stopwatch = Stopwatch(stop, self._history)
        while self._busy() or self._room(stopwatch):
            jobs = self._algorithm.ask(room) if (room := self._room(stopwatch)) else []
            if jobs:
                self._issue(jobs)
            elif not self._busy():
                if room:
                    logger.warning(
                        "Nothing new is left to try after %d trials: %s.",
                        len(self._history.trials), spent(self._problem.space),
                    )  # fmt: skip
                break
            self._collect(block=not jobs or not self._room(stopwatch))
        if reason := stopwatch.reached():
            logger.info("The search ends: %s.", reason)
        return reason

    def measure(self, jobs: Sequence[Job]) -> None:
        """Measure finished trials on other data; what was measured before is not measured again."""
        left = deque(job for job in jobs if (job.trial, str(job.fidelity.batch)) not in self._history.measures)
        while self._busy() or (left and not self.stopping):
            while left and not self.stopping and self._vacant():
                self._issue([left.popleft()], tell=False)
            self._collect(block=True)

    def rest(self, why: str) -> None:
        """Say that the run is over, and why: "finished", "stopped" or "failed"."""
        under_way = () if self._executor.isolated else self._history.under_way()
        for trial in filter(None, map(self._open, under_way)):  # what runs is not to blame: this process lives
            trial.failures -= 1
            self._stored.attempt(trial)
        self._history.workers = ()
        self._note(ended=why)

    def _busy(self) -> bool:
        """Whether anything runs, or waits for a worker and may still begin."""
        return bool(self._running or (self._waiting and not self.stopping))

    def _vacant(self) -> int:
        """How many workers have nothing to do."""
        return max(0, self._executor.capacity - len(self._running) - len(self._waiting))

    def _room(self, stopwatch: Stopwatch) -> int:
        """How many trials may be begun now."""
        vacant, left = self._vacant(), stopwatch.room()
        if not vacant or left == 0 or self.stopping or stopwatch.reached():
            return 0
        return vacant if left is None else min(vacant, left)

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

    def _interrupted(self) -> list[_Errand]:
        """Jobs that were dispatched but never finished: they are done again under their number.

        A candidate that was under way each time a process died is not tried for ever.
        """
        again = []
        for job in self._history.under_way():
            if job.kind == "measure":
                continue
            trial = self._open(job)
            if trial is None:
                again.append(_Errand(job))
                continue
            trial.attempts += 1
            trial.failures += not self._executor.isolated  # in this very process: it may be what ended it
            self._stored.attempt(trial)
            if trial.failures > max(self._retries, DEATHS - 1):
                message = f"Its evaluation was under way each of the {trial.failures} times that a process died."
                self._finish(_Errand(job), Failure("quarantined", message), 0.0)
            else:
                again.append(_Errand(job, trial.failures if self._executor.isolated else 0))
        return again

    def _issue(self, jobs: Sequence[Job], *, tell: bool = True) -> None:
        space, trials = self._problem.space, self._history.trials
        jobs = sorted(jobs, key=lambda job: job.trial)  # as a replay has them
        for job in jobs:
            if job.kind == "prune" and any(e.job.trial == job.trial for e in (*self._waiting, *self._running.values())):
                raise AlgorithmError(f"Trial {job.trial} was pruned while a job of it is under way; wait for its end.")
            self._stored.issue(self._seq, job, space, self._known(job))
            if job.kind in SIZING and job.trial == len(trials):
                trials.append(Trial(job.trial, job.config, label=job.label, screened=job.kind == "screen"))
                self._history.unbegun += trials[-1].screened
            elif job.kind == "evaluate":
                self._history.unbegun -= trials[job.trial].screened
                trials[job.trial].screened = False
            elif job.kind == "prune":
                trials[job.trial].state = "pruned"
            self._history.events.append(Event(self._seq, job))
        self._seq += 1
        if tell:
            self._algorithm.issued(jobs)
        self._waiting.extend(_Errand(job) for job in jobs if job.kind != "prune")

    def _open(self, job: Job) -> Trial | None:
        """The trial that a job is to complete, or may; None for other jobs, and where the trial has ended."""
        if job.kind not in SIZING:
            return None
        trial = self._history.trials[job.trial]
        return trial if trial.state == "running" else None

    def _known(self, job: Job) -> dict[str, float]:
        """The known values of a new candidate; one that has none fails when it is evaluated, with the reason."""
        try:
            return known_values(self._problem, job.config) if job.kind in SIZING else {}
        except ProblemError:
            return {}

    def _dispatch(self) -> None:
        """Give workers what waits for them. An exclusive job runs alone."""
        while self._waiting and len(self._running) < self._executor.capacity and not self.stopping:
            errand = self._waiting[0]
            alone = errand.job.exclusive or any(other.job.exclusive for other in self._running.values())
            if self._running and alone:
                return
            self._waiting.popleft()
            self._pulsate()
            started = replace(errand, started=time.perf_counter())
            with self._left_at_once():  # an inline executor runs the job here and now
                future = self._executor.submit(errand.job, fresh=errand.failures > 0)
            self._running[future] = started

    def _collect(self, *, block: bool) -> None:
        """Dispatch what waits, store and tell what has ended; wait for at least one if `block`."""
        self._dispatch()
        ended: set[Future[Outcome]] = set()
        while self._running and not ended:
            with self._left_at_once():
                ended = wait(self._running, timeout=PATIENCE if block else 0, return_when=FIRST_COMPLETED).done
            self._pulsate()
            if not block:
                break
        for future in sorted(ended, key=lambda f: self._running[f].job.trial):
            outcome = future.result()  # an error here is the executor's: the job stays open in the log
            errand = self._running.pop(future)
            waited = time.perf_counter() - errand.started
            self._finish(errand, outcome, future.seconds if isinstance(future, JobFuture) else waited)

    def _finish(self, errand: _Errand, outcome: Outcome, seconds: float) -> None:
        job = errand.job
        if isinstance(outcome, Failure) and self._again(errand, outcome):
            return
        if job.kind == "sensitivity" and isinstance(outcome, Failure):  # not stored, so that the next run tries again
            raise StudyError(f"The sensitivities could not be computed: {outcome.message}")
        event = Event(self._seq, job, outcome, seconds, self._tokens(job, outcome))
        self._seq += 1
        trial = self._history.trials[job.trial] if job.kind == "evaluate" else None
        if trial is not None:
            self._conclude(trial, event)
        self._stored.finish(event, trial, list(self._problem.objectives))
        self._history.events.append(event)
        extra: dict[str, Any] = {
            "trial": job.trial,
            "kind": job.kind,
            "seconds": round(seconds, 3),
            "tokens": event.tokens,
        }
        if isinstance(outcome, Failure):
            logger.warning("%s failed: %s", _described(job), outcome.message, extra={**extra, "state": "failed"})
        else:
            values = trial.values if trial is not None else dict(outcome.values)
            logger.info("%s is complete.", _described(job), extra={**extra, "state": "complete", "values": values})
            if job.kind == "measure":
                self._history.measures[job.trial, str(job.fidelity.batch)] = outcome
        if job.kind != "measure":
            self._algorithm.tell([(job, outcome)])
        if self._watch:
            self._watch(self._history, event)
        self._give_up(job, outcome)

    def _give_up(self, job: Job, outcome: Outcome) -> None:
        """End a run whose screens all fail, for it would go on for ever.

        Raises:
            StudyError: that is so; says how the last one failed.
        """
        if job.kind != "screen":
            return
        if not isinstance(outcome, Failure):
            self._failing = 0
            return
        self._failing += 1
        if self._failing >= HOPELESS:
            raise StudyError(
                f"The last {HOPELESS} screens of candidates failed, on {job.fidelity.tokens} tokens, one with: "
                f"{outcome.message}. Mend that, or let the algorithm screen on more tokens, and run again."
            )

    def _again(self, errand: _Errand, failure: Failure) -> bool:
        """Try a failed job once more on a fresh worker, if that makes sense."""
        job, failures = errand.job, errand.failures + 1
        if not self._executor.isolated or failures > self._retries or failure.kind == "quarantined":
            return False
        logger.warning("%s failed and is tried again on a fresh worker: %s", _described(job), failure.message)
        if (trial := self._open(job)) is not None:
            trial.attempts, trial.failures = trial.attempts + 1, failures
            self._stored.attempt(trial)
        self._waiting.appendleft(replace(errand, failures=failures))
        return True

    def _pulsate(self) -> None:
        """Let others see how the run stands, now and then."""
        self._history.workers = self._executor.workers()
        if time.monotonic() - self._beat >= PULSE:
            self._beat = time.monotonic()
            self._note()

    def _note(self, **more: str) -> None:
        here = {"host": socket.gethostname(), "process": os.getpid()}
        self._history.pulse = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **here, **more}
        self._stored.pulse({**self._history.pulse, "workers": [worker_entry(w) for w in self._history.workers]})

    def _conclude(self, trial: Trial, event: Event) -> None:
        trial.seconds, trial.tokens, trial.ended = event.seconds, event.tokens, datetime.now().astimezone()
        if isinstance(event.outcome, Failure):
            trial.state, trial.failure = "failed", event.outcome
            return
        assert event.outcome is not None
        trial.state, trial.evaluation = "complete", event.outcome
        trial.values = {**known_values(self._problem, trial.config), **event.outcome.values}
        trial.violations = {c.name: c.excess(trial.values[c.name]) for c in self._problem.constraints}

    def _tokens(self, job: Job, outcome: Outcome) -> int:
        """What a job cost in forward tokens: what it reports, else what the problem says of its kind."""
        usual = int(self._problem.forward_tokens(job.kind, job.fidelity))
        return usual if isinstance(outcome, Failure) else int(outcome.attributes.get("forward_tokens", usual))


def _described(job: Job) -> str:
    if job.kind == "evaluate":
        return f"Trial {job.trial}"
    return f"The {job.kind} job" if job.trial < 0 else f"The {job.kind} job of trial {job.trial}"


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
    alone = purpose in problem.exclusive
    return [Job(trial.number, trial.config, "measure", fidelity, exclusive=alone) for trial in trials]
