"""Jobs on actors of a Ray cluster, local or not: Ray decides where they run and brings back what they say.

`ray.init()` connects to the cluster that RAY_ADDRESS names, or starts one on this machine; a program that did so itself
keeps its own.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from moopt.errors import NotPortable, WorkerError
from moopt.executors.base import Executor, WorkerState
from moopt.jobs import Failure, Job, Outcome, perform
from moopt.problem import Problem, Resources

logger = logging.getLogger("moopt")

STARTS = 3
"""How often a worker that dies while it sets up is started again."""
PATIENCE = 30.0
"""Seconds without any worker after which it is said what the cluster lacks."""


class _Worker:
    """What lives on the cluster: a problem that was set up, and its jobs one at a time."""

    def __init__(self, path: list[str], pickled: bytes, resources: Resources) -> None:
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.environ["MOOPT_WORKER"] = "a worker of Ray"
        self._pickled, self._resources = pickled, resources
        self._problem: Problem | None = None

    def set_up(self) -> str | Failure:
        """Where it is, or why it cannot work."""
        try:
            problem: Problem = cloudpickle.loads(self._pickled)
            problem.setup(self._resources)
        except (Exception, SystemExit) as error:
            import traceback

            return Failure(type(error).__name__, str(error) or type(error).__name__, traceback.format_exc())
        self._problem = problem
        return f"{socket.gethostname()}, process {os.getpid()}"

    def perform(self, job: Job) -> Outcome:
        """Run a job."""
        assert self._problem is not None
        return perform(self._problem, job)


@dataclass
class _Task:
    job: Job
    fresh: bool
    future: Future[Outcome]
    limit: float | None
    timer: threading.Timer | None = None
    late: bool = False


@dataclass
class _Slot:
    """A place for an actor, and the actor that has it now."""

    name: str
    actor: Any = None
    place: str = "waiting for the cluster"
    ready: bool = False
    used: bool = False
    task: _Task | None = None
    since: float = 0.0
    starts: int = 0
    done: int = 0
    failed: int = 0


class RayExecutor(Executor):
    """Runs jobs on actors, started at the first job.

    Each asks Ray for what `problem.needs` says, such as {"CPU": 4, "GPU": 1}; what is not said is one CPU a thread, and
    a GPU if the cluster has any and the device is not "cpu".

    Args:
        problem: Sent to the actors; where they run, its module must be importable or defined in the main program.
        resources: The device and threads of a worker.
        workers: How many.
        timeout: Seconds an evaluation may take; a job that runs more tokens may take in proportion longer.

    Raises:
        NotPortable: the problem cannot be pickled.
        WorkerError: there is no cluster.
    """

    isolated = True

    def __init__(self, problem: Problem, resources: Resources, workers: int, timeout: float | None = None) -> None:
        self._problem, self._resources, self._timeout = problem, resources, timeout
        try:
            self._pickled: bytes = cloudpickle.dumps(problem)
        except Exception as error:
            raise NotPortable(f"{type(problem).__name__} cannot be sent to a cluster: {error}") from error
        self.capacity = workers
        self._slots = [_Slot(f"worker {i}") for i in range(workers)]
        self._queue: deque[_Task] = deque()
        self._lock = threading.RLock()
        self._started = self._closed = self._owner = False
        self._broken_by = WorkerError("No worker is left.")
        self._news: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            if self._closed:
                raise WorkerError("The executor is closed.")
            if not self._started:
                self._begin()
            self._queue.append(_Task(job, fresh, future, self._limit(job)))
            self._assign()
        return future

    def workers(self) -> Sequence[WorkerState]:
        now = time.monotonic()
        with self._lock:
            return [
                WorkerState(
                    s.name, s.place, s.task.job if s.task and s.ready else None,
                    now - s.since if s.task and s.ready else 0.0, s.done, s.failed, s.ready,
                )
                for s in self._slots
            ]  # fmt: skip

    def close(self, grace: float = 0.0) -> None:
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(slot.task for slot in self._slots):
            time.sleep(0.05)
        with self._lock:
            if self._closed:
                return
            self._closed = True
            slots, self._slots = self._slots, []
            left = [*self._queue, *(slot.task for slot in slots if slot.task)]
            self._queue.clear()
        self._news.put(None)
        for slot in slots:
            self._kill(slot)
        for task in left:
            _give_up(task, WorkerError("The workers were stopped."))
        if self._owner:
            ray.shutdown()

    def _begin(self) -> None:
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
            except Exception as error:
                raise WorkerError(f"There is no Ray cluster: {type(error).__name__}: {error}") from error
            self._owner = True
        self._started = True
        threading.Thread(target=self._listen, name="moopt workers", daemon=True).start()
        for slot in self._slots:
            self._start(slot)
        watch = threading.Timer(PATIENCE, self._say_what_lacks)
        watch.daemon = True
        watch.start()

    def _listen(self) -> None:
        """Act on what happens, in a thread of our own: Ray's may not wait for Ray."""
        while (react := self._news.get()) is not None:
            try:
                react()
            except Exception:
                if not self._closed:
                    logger.exception("The workers' thread failed.")

    def _then(self, reference: Any, react: Callable[[Future[Any]], None]) -> None:
        """Act on what a remote call brings, once it does."""
        reference.future().add_done_callback(lambda found: self._news.put(partial(react, found)))

    def _needs(self) -> dict[str, Any]:
        needs = {str(name): float(amount) for name, amount in self._problem.needs.items()}
        cpus = needs.pop("CPU", self._resources.threads or 1)
        usual = 1 if self._resources.device != "cpu" and ray.cluster_resources().get("GPU") else 0
        gpus, memory = needs.pop("GPU", usual), needs.pop("memory", None)
        return {"num_cpus": cpus, "num_gpus": gpus, "resources": needs} | ({"memory": memory} if memory else {})

    def _start(self, slot: _Slot) -> None:
        actor = ray.remote(_Worker).options(max_restarts=0, **self._needs())
        slot.ready = slot.used = False
        slot.actor = actor.remote([p for p in sys.path if p], self._pickled, self._resources)
        self._then(slot.actor.set_up.remote(), partial(self._set_up, slot, slot.actor))

    def _kill(self, slot: _Slot) -> None:
        actor, slot.actor, slot.ready = slot.actor, None, False
        if actor is not None and ray.is_initialized():
            ray.kill(actor)

    def _set_up(self, slot: _Slot, actor: Any, found: Future[str | Failure]) -> None:
        """An actor is ready, broken or dead."""
        with self._lock:
            if slot.actor is not actor:
                return
            error = found.exception()
            if error is not None:
                slot.starts += 1
                if slot.starts < STARTS:
                    self._start(slot)
                else:
                    self._broken(slot, f"A worker died while it set the problem up: {_first(error)}", str(error))
                return
            said = found.result()
            if isinstance(said, Failure):
                self._broken(slot, f"The problem cannot be set up: {said.message}", said.traceback)
                return
            slot.place, slot.ready, slot.starts = said, True, 0
            if slot.task is not None:
                self._send(slot)
            else:
                self._assign()

    def _assign(self) -> None:
        while self._queue and not self._slots:
            _give_up(self._queue.popleft(), self._broken_by)
        for task in list(self._queue):
            free = [slot for slot in self._slots if slot.task is None]
            if not free:
                return
            slot = min(free, key=lambda s: (s.used if task.fresh else not s.ready, s.name))
            self._queue.remove(task)
            slot.task = task
            if task.fresh and slot.used:
                self._kill(slot)
                self._start(slot)
            elif slot.ready:
                self._send(slot)

    def _send(self, slot: _Slot) -> None:
        task = slot.task
        assert task is not None
        slot.since, slot.used = time.monotonic(), True
        if task.limit is not None:
            task.timer = threading.Timer(task.limit, self._news.put, [partial(self._late, slot, task)])
            task.timer.daemon = True
            task.timer.start()
        self._then(slot.actor.perform.remote(task.job), partial(self._ended, slot, task))

    def _late(self, slot: _Slot, task: _Task) -> None:
        with self._lock:
            if slot.task is task and slot.actor is not None:
                task.late = True
                ray.kill(slot.actor)

    def _ended(self, slot: _Slot, task: _Task, found: Future[Outcome]) -> None:
        """A job ended, or its actor did."""
        with self._lock:
            if slot.task is not task:
                return
            slot.task = None
            error = found.exception()
            if error is None:
                outcome = found.result()
            else:
                outcome = _failure(task, error)
                self._start(slot)
            slot.done += 1
            slot.failed += isinstance(outcome, Failure)
            self._assign()
        if task.timer is not None:
            task.timer.cancel()
        task.future.set_result(outcome)

    def _broken(self, slot: _Slot, message: str, trace: str) -> None:
        self._slots.remove(slot)
        self._kill(slot)
        self.capacity = max(1, len(self._slots))
        if slot.task is not None:
            self._queue.appendleft(slot.task)
        if self._slots:
            logger.warning("%s Going on with %d workers.", message, len(self._slots))
            self._assign()
            return
        self._broken_by = WorkerError(message, trace)
        self._assign()

    def _limit(self, job: Job) -> float | None:
        if self._timeout is None:
            return None
        usual = max(self._problem.forward_tokens("evaluate", self._problem.fidelity), 1)
        return self._timeout * max(1.0, self._problem.forward_tokens(job.kind, job.fidelity) / usual)

    def _say_what_lacks(self) -> None:
        with self._lock:
            if self._closed or any(slot.ready for slot in self._slots):
                return
            has = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
            logger.warning(
                "No worker has started in %.0f s. Each asks for %s; the cluster has %s. Ask for less in the problem's "
                "`needs`, or wait for the cluster to grow.", PATIENCE, self._needs(), has,
            )  # fmt: skip


def _give_up(task: _Task, error: WorkerError) -> None:
    if not task.future.done():
        task.future.set_exception(error)


def _failure(task: _Task, error: BaseException) -> Failure:
    if task.late:
        message = f"The {task.job.kind} job took more than {task.limit:.3g} s, the timeout; it was stopped."
        return Failure("timeout", message)
    kind = "killed" if isinstance(error, RayError) else type(error).__name__
    return Failure(kind, f"The worker died: {_first(error)}", str(error))


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
