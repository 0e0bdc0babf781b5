"""The places of an executor with workers: which job goes where, and what a worker's end means. Starts nothing itself.

What a worker is, and how one talks to it, is the executor's: it gives the pool a `Hands`. All methods are called with
`Pool.lock` held, those that an executor's user calls take it themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from moopt.errors import WorkerError
from moopt.executors.base import JobFuture, WorkerState
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem

logger = logging.getLogger("moopt")

STARTS = 3
"""How often a worker that dies while it sets up is started again."""
PATIENCE = 60.0
"""Seconds after which it is said that a worker is still setting up."""
LOOK = 3600.0
"""Seconds after which somebody looks up at the latest: the system's clocks do not wait for years."""
SETUP = 600.0
"""Seconds that setting up may take where evaluations have a timeout; more, if that is more."""


@dataclass(eq=False)
class Task:
    """A job that waits for a worker or is on one.

    Attributes:
        limit: Seconds it may take.
    """

    job: Job
    fresh: bool
    future: JobFuture
    limit: float | None

    def late(self) -> Failure:
        """What has become of it when it took too long."""
        return late(f"The {self.job.kind} job", self.limit)


@dataclass(eq=False)
class Slot:
    """A place for one worker after the other.

    Attributes:
        name: What its worker is called.
        place: Where its worker is.
        ready: Whether its worker has set the problem up.
        used: Whether its worker has been given a job.
        task: What its worker runs, or will run once it is ready.
        since: When its worker was given that, or was started.
        starts: Workers in a row that died while they set up.
        slow: Whether it was said that its worker takes long to set up.
    """

    name: str
    place: str
    ready: bool = False
    used: bool = False
    task: Task | None = None
    since: float = 0.0
    starts: int = 0
    slow: bool = False
    done: int = 0
    failed: int = 0

    def state(self) -> WorkerState:
        """What its worker does now."""
        job = self.task.job if self.task is not None and self.ready else None
        seconds = time.monotonic() - self.since if job is not None or not self.ready else 0.0
        return WorkerState(self.name, self.place, job, seconds, self.done, self.failed, self.ready)


S = TypeVar("S", bound=Slot)
S_contra = TypeVar("S_contra", bound=Slot, contravariant=True)


class Hands(Protocol[S_contra]):
    """How workers are started, told and stopped."""

    def start(self, slot: S_contra) -> None:
        """Start a worker in a place."""

    def stop(self, slot: S_contra) -> None:
        """Stop the worker of a place, if there is one."""

    def send(self, slot: S_contra) -> None:
        """Give a ready worker its task."""


class Pool(Generic[S]):
    """The places, and the jobs that wait for one.

    Args:
        hands: Does what has to be done.
        slots: The places.
        problem: What the jobs are of.
        timeout: Seconds an evaluation may take; a job that runs more tokens may take in proportion longer.
    """

    def __init__(self, hands: Hands[S], slots: list[S], problem: Problem, timeout: float | None) -> None:
        self._hands, self._problem, self._timeout = hands, problem, timeout
        self.slots = slots
        self.lock = threading.RLock()
        self._queue: deque[Task] = deque()
        self._error: WorkerError | None = None

    @property
    def capacity(self) -> int:
        """How many places are left; one where none is, so that somebody learns of it."""
        return max(1, len(self.slots))

    def states(self) -> Sequence[WorkerState]:
        """What each worker does now."""
        with self.lock:
            return [slot.state() for slot in self.slots]

    def settle(self, grace: float) -> None:
        """Wait for what runs, so long at most."""
        with self.lock:
            running = [slot.task.future for slot in self.slots if slot.task]
        wait(running, grace)

    def add(self, job: Job, fresh: bool) -> JobFuture:
        """Take up a job; `assign` gives it to a worker."""
        task = Task(job, fresh, JobFuture(), self._limit(job))
        if self._error is None:
            self._queue.append(task)
        else:
            task.future.set_exception(self._error)
        return task.future

    def assign(self) -> None:
        """Give what waits to workers that wait."""
        while self._queue:
            task = self._queue[0]
            free = [slot for slot in self.slots if slot.task is None]
            if not free:
                return
            # A fresh job takes a used worker, which then has to be replaced, only if there is no other.
            slot = min(free, key=lambda s: (s.used if task.fresh else not s.ready, s.name))
            self._queue.popleft()
            slot.task = task
            if task.fresh and slot.used:
                self._hands.stop(slot)
                self.start(slot)
            elif slot.ready:
                self._send(slot)

    def start(self, slot: S) -> None:
        """Start a worker."""
        slot.ready = slot.used = slot.slow = False
        slot.since = time.monotonic()
        self._hands.start(slot)

    def left(self, slot: S) -> float | None:
        """Seconds until a worker has taken too long for what it does; None if it may take for ever."""
        limit = slot.task.limit if slot.task is not None else None
        if not slot.ready:
            limit = None if self._timeout is None else max(self._timeout, SETUP)
        return None if limit is None else limit - (time.monotonic() - slot.since)

    def quiet(self) -> float:
        """Seconds in which nothing gets late."""
        left = [seconds for slot in self.slots if (seconds := self.left(slot)) is not None]
        left += [PATIENCE for slot in self.slots if not slot.ready]
        return max(0.0, min([LOOK, *left]))

    def watch_setups(self) -> None:
        """Say which workers take long to set up, and give up those that take too long."""
        now = time.monotonic()
        for slot in [slot for slot in self.slots if not slot.ready]:
            if not slot.slow and now - slot.since >= PATIENCE:
                slot.slow = True
                logger.warning("%s has been setting the problem up for %.0f s.", slot.name, now - slot.since)
            if (left := self.left(slot)) is not None and left <= 0:
                self.broken(slot, late("Setting the problem up", now - slot.since))

    def is_ready(self, slot: S) -> None:
        """A worker has set the problem up."""
        slot.ready, slot.starts = True, 0
        if slot.task is not None:
            self._send(slot)
        else:
            self.assign()

    def finished(self, slot: S, outcome: Outcome) -> None:
        """A worker's task has come to its end."""
        task, slot.task = slot.task, None
        assert task is not None
        task.future.seconds = time.monotonic() - slot.since
        slot.done += 1
        slot.failed += isinstance(outcome, Failure)
        task.future.set_result(outcome)

    def died(self, slot: S, failure: Failure) -> None:
        """A worker was stopped or is gone: its task failed; another worker takes its place."""
        if slot.ready:
            if slot.task is not None:
                self.finished(slot, failure)
            self.start(slot)
            return
        slot.starts += 1
        if slot.starts >= STARTS:
            said = failure.message.removesuffix(".")
            self.broken(slot, Failure(failure.kind, f"{said} while it set the problem up.", failure.traceback))
            return
        logger.warning("%s: %s It was setting the problem up, and is started again.", slot.name, failure.message)
        self.start(slot)

    def broken(self, slot: S, failure: Failure) -> None:
        """No worker can be set up in a place: it is given up; with the last place, everything is."""
        self._hands.stop(slot)
        task, slot.task = slot.task, None
        self.slots.remove(slot)
        if task is not None:
            self._queue.appendleft(task)
        if self.slots:
            message, left = failure.message.rstrip("."), len(self.slots)
            logger.warning("%s. Going on with %d worker%s.", message, left, "" if left == 1 else "s")
            self.assign()
        else:
            self.give_up(WorkerError(failure.message, failure.traceback))

    def give_up(self, error: WorkerError) -> None:
        """Stop all workers and end what runs or waits; nothing is taken up any more."""
        self._error = self._error or error
        tasks = [slot.task for slot in self.slots if slot.task] + list(self._queue)
        for slot in self.slots:
            self._hands.stop(slot)
            slot.task = None
        self._queue.clear()
        for task in tasks:
            task.future.set_exception(self._error)

    def _send(self, slot: S) -> None:
        slot.since, slot.used = time.monotonic(), True
        self._hands.send(slot)

    def _limit(self, job: Job) -> float | None:
        if self._timeout is None:
            return None
        usual = max(self._problem.forward_tokens("evaluate", self._problem.fidelity), 1)
        return self._timeout * max(1.0, self._problem.forward_tokens(job.kind, job.fidelity) / usual)


def late(what: str, limit: float | None) -> Failure:
    """What has become of something that took longer than it may."""
    return Failure("timeout", f"{what} took more than {limit:.3g} s, the timeout; it was stopped.")
