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
from moopt.executors.pool import Pool, Slot, Task
from moopt.jobs import Failure, Job, Outcome, perform, set_up
from moopt.problem import Problem, Resources

logger = logging.getLogger("moopt")

PATIENCE = 30.0
"""Seconds without any worker after which it is said what the cluster lacks."""


class _Worker:
    """What lives on the cluster: a problem that was set up, and its jobs one at a time."""

    def __init__(self, path: list[str], pickled: bytes, resources: Resources) -> None:
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.environ["MOOPT_WORKER"] = "a worker of Ray"
        self._pickled, self._resources = pickled, resources

    def set_up(self) -> str | Failure:
        """Where it is, or why it cannot work."""
        self._problem = set_up(self._rebuilt, self._resources)
        if isinstance(self._problem, Failure):
            return self._problem
        return f"{socket.gethostname()}, process {os.getpid()}"

    def _rebuilt(self) -> Problem:
        problem: Problem = cloudpickle.loads(self._pickled)
        del os.environ["MOOPT_WORKER"]  # the file that defines the problem is read: a study may be run now
        return problem

    def perform(self, job: Job) -> Outcome:
        """Run a job."""
        assert not isinstance(self._problem, Failure)
        return perform(self._problem, job)


@dataclass(eq=False)
class _Place(Slot):
    """A place with the actor that serves it now."""

    actor: Any = None
    timer: threading.Timer | None = None


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
        self._problem, self._resources = problem, resources
        try:
            self._pickled: bytes = cloudpickle.dumps(problem)
        except Exception as error:
            raise NotPortable(f"{type(problem).__name__} cannot be sent to a cluster: {error}") from error
        slots = [_Place(f"worker {i}", "waiting for the cluster") for i in range(workers)]
        self._pool: Pool[_Place] = Pool(self, slots, problem, timeout)
        self._started = self._closed = self._owner = False
        self._news: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        with self._pool.lock:
            if self._closed:
                raise WorkerError("The executor is closed.")
            if not self._started:
                self._begin()
            future = self._pool.add(job, fresh)
            self._pool.assign()
        return future

    def workers(self) -> Sequence[WorkerState]:
        return self._pool.states()

    def close(self, grace: float = 0.0) -> None:
        if self._closed:
            return
        self._pool.settle(grace)
        with self._pool.lock:
            self._closed = True
            self._news.put(None)
            self._pool.give_up(WorkerError("The workers were stopped."))
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
        for slot in self._pool.slots:
            self._pool.start(slot)
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

    def start(self, slot: _Place) -> None:
        actor = ray.remote(_Worker).options(max_restarts=0, **self._needs())
        slot.actor = actor.remote([p for p in sys.path if p], self._pickled, self._resources)
        self._then(slot.actor.set_up.remote(), partial(self._set_up, slot, slot.actor))

    def stop(self, slot: _Place) -> None:
        actor, slot.actor = slot.actor, None
        if slot.timer is not None:
            slot.timer.cancel()
        if actor is not None and ray.is_initialized():
            ray.kill(actor)

    def send(self, slot: _Place) -> None:
        task = slot.task
        assert task is not None
        if task.limit is not None:
            seconds = min(task.limit, threading.TIMEOUT_MAX)
            slot.timer = threading.Timer(seconds, self._news.put, [partial(self._late, slot, task)])
            slot.timer.daemon = True
            slot.timer.start()
        self._then(slot.actor.perform.remote(task.job), partial(self._ended, slot, task))

    def _set_up(self, slot: _Place, actor: Any, found: Future[str | Failure]) -> None:
        """An actor is ready, broken or dead."""
        with self._pool.lock:
            if slot.actor is not actor:
                return
            if (error := found.exception()) is not None:
                self._pool.died(slot, _death(error))
            elif isinstance(said := found.result(), Failure):
                self._pool.broken(slot, said)
            else:
                slot.place = said
                self._pool.is_ready(slot)

    def _ended(self, slot: _Place, task: Task, found: Future[Outcome]) -> None:
        """A job ended, or its actor did."""
        with self._pool.lock:
            if slot.task is not task:
                return
            if slot.timer is not None:
                slot.timer.cancel()
            if (error := found.exception()) is not None:
                self._pool.died(slot, _death(error))
            else:
                self._pool.finished(slot, found.result())
            self._pool.assign()

    def _late(self, slot: _Place, task: Task) -> None:
        with self._pool.lock:
            if slot.task is task:
                self.stop(slot)
                self._pool.died(slot, task.late())
                self._pool.assign()

    def _say_what_lacks(self) -> None:
        with self._pool.lock:
            if self._closed or any(slot.ready for slot in self._pool.slots):
                return
            has = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
            logger.warning(
                "No worker has started in %.0f s. Each asks for %s; the cluster has %s. Ask for less in the problem's "
                "`needs`, or wait for the cluster to grow.", PATIENCE, self._needs(), has,
            )  # fmt: skip


def _death(error: BaseException) -> Failure:
    kind = "killed" if isinstance(error, RayError) else type(error).__name__
    return Failure(kind, f"The worker died: {_first(error)}.", str(error))


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
