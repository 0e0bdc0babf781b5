"""Jobs in processes of this machine: each loads the problem once and keeps it; one that dies is replaced.

One thread talks to all workers. What a worker is and says is in `worker.py`, what it gets of the machine in
`placement.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import spawn
from multiprocessing.connection import Connection, wait
from typing import Any

import __main__
from moopt.errors import NotPortable, WorkerError
from moopt.executors.base import Executor, WorkerState
from moopt.executors.placement import Place, places
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem, Resources

logger = logging.getLogger("moopt")

STARTS = 3
"""How often a worker that dies while it sets up is started again."""
TAIL = 8192
"""Bytes kept of what a worker printed last, for the reason of its death."""
FAREWELL = 2.0
"""Seconds that an idle worker has to end by itself."""


@dataclass
class _Task:
    job: Job
    fresh: bool
    future: Future[Outcome]
    limit: float | None
    """Seconds it may take."""


@dataclass
class _Worker:
    """A place with the process that serves it now."""

    name: str
    place: Place
    process: subprocess.Popen[bytes] | None = None
    connection: Connection | None = None
    sentinel: int | None = None
    """Readable once the process has ended, where the system has such a thing; it may leave its sockets to a child."""
    mute: bool = False
    ready: bool = False
    task: _Task | None = None
    since: float = 0.0
    starts: int = 0
    used: bool = False
    done: int = 0
    failed: int = 0
    printed: bytearray = field(default_factory=bytearray)

    @property
    def free(self) -> bool:
        return self.task is None

    @property
    def busy(self) -> bool:
        return self.task is not None and self.ready

    @property
    def output(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def last_words(self) -> str:
        return self.printed.decode(errors="replace").strip()


class ProcessExecutor(Executor):
    """Runs jobs on worker processes, started at the first job.

    Args:
        problem: Rebuilt in each worker from its pickle and the file that defines its class.
        resources: The device and threads of a worker; None for the threads divides the cores.
        workers: How many.
        timeout: Seconds an evaluation may take; a job that runs more tokens may take in proportion longer.

    Raises:
        NotPortable: the problem cannot be rebuilt in another process.
    """

    isolated = True

    def __init__(self, problem: Problem, resources: Resources, workers: int, timeout: float | None = None) -> None:
        self._problem, self._timeout = problem, timeout
        self._pickled = portable(problem)
        self._resources = resources
        self._workers = [_Worker(f"worker {i}", place) for i, place in enumerate(places(workers, resources))]
        self.capacity = workers
        self._queue: deque[_Task] = deque()
        self._lock = threading.RLock()
        self._said: set[str] = set()
        self._wakened, self._waken = os.pipe()
        self._closing = False
        self._broken_by = WorkerError("No worker is left.")
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            if self._closing:
                raise WorkerError("The executor is closed.")
            self._queue.append(_Task(job, fresh, future, self._limit(job)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="moopt workers", daemon=True)
                self._thread.start()
        os.write(self._waken, b".")
        return future

    def workers(self) -> Sequence[WorkerState]:
        now = time.monotonic()
        with self._lock:
            return [
                WorkerState(
                    w.name, f"{w.place.label}, process {w.process.pid}" if w.process else w.place.label,
                    w.task.job if w.task and w.ready else None, now - w.since if w.busy else 0.0,
                    w.done, w.failed, w.ready,
                )
                for w in self._workers
            ]  # fmt: skip

    def close(self, grace: float = 0.0) -> None:
        with self._lock:
            if self._closing:
                return
            running = [w.task.future for w in self._workers if w.task]
        with contextlib.suppress(TimeoutError):
            for future in _until(running, grace):
                future.exception(0)
        with self._lock:
            self._closing = True
        os.write(self._waken, b".")
        if self._thread is not None:
            self._thread.join()
        os.close(self._waken)
        os.close(self._wakened)

    def _limit(self, job: Job) -> float | None:
        if self._timeout is None:
            return None
        usual = max(self._problem.forward_tokens("evaluate", self._problem.fidelity), 1)
        return self._timeout * max(1.0, self._problem.forward_tokens(job.kind, job.fidelity) / usual)

    # What follows runs in the one thread that talks to the workers.

    def _serve(self) -> None:
        try:
            for worker in self._workers:
                self._start(worker)
            while not self._closing:
                with self._lock:
                    self._assign()
                    sources = {w.connection: w for w in self._workers if w.connection}
                    outputs = {w.output: w for w in self._workers if w.process and not w.mute}
                    # With the process: its descriptors are used again as soon as it is replaced.
                    sentinels = {w.sentinel: (w, w.process) for w in self._workers if w.sentinel is not None}
                found = wait([self._wakened, *sources, *outputs, *sentinels], self._patience())
                with self._lock:
                    if self._wakened in found:
                        os.read(self._wakened, 4096)
                    for output in outputs.keys() & found:
                        self._read(outputs[output])
                    for connection in sources.keys() & found:
                        self._hear(sources[connection], connection)
                    for sentinel in sentinels.keys() & found:
                        self._ended(*sentinels[sentinel])
                with self._lock:
                    self._stop_the_late()
        except BaseException as error:  # a fault of ours: nobody may wait for ever
            logger.exception("The workers' thread failed.")
            self._give_up(WorkerError(f"The workers cannot be served: {type(error).__name__}: {error}"))
        finally:
            for worker in self._workers:
                self._stop(worker)
            self._give_up(WorkerError("The workers were stopped."))

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from moopt.executors.worker import main; main({theirs.fileno()})"
        )
        with self._lock, theirs:
            worker.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **worker.place.environment, "MOOPT_WORKER": worker.name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            os.set_blocking(worker.output, False)
            worker.connection = Connection(ours.detach())
            worker.sentinel = os.pidfd_open(worker.process.pid) if hasattr(os, "pidfd_open") else None
            worker.mute = worker.ready = worker.used = False
            worker.since = time.monotonic()
            worker.printed.clear()
            with contextlib.suppress(OSError):  # it is gone already: heard of next
                worker.connection.send(("problem", _preparation(self._pickled), self._pickled, worker.place.resources))

    def _stop(self, worker: _Worker) -> int:
        """End a worker's process and all that it started; its exit code."""
        process, connection, sentinel = worker.process, worker.connection, worker.sentinel
        worker.process = worker.connection = worker.sentinel = None
        worker.ready = False
        if process is None:
            return 0
        if connection is not None:
            connection.close()
        if sentinel is not None:
            os.close(sentinel)
        if not worker.free or worker.place.environment.get("CUDA_VISIBLE_DEVICES") is None:
            _kill(process)
        else:  # a GPU's context is best left in peace
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(FAREWELL)
            _kill(process)
        code = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        return code

    def _assign(self) -> None:
        """Give what waits to workers that wait."""
        if not self._workers:
            self._give_up(self._broken_by)
        for task in list(self._queue):
            free = [w for w in self._workers if w.free]
            if not free:
                return
            # A fresh job takes a worker that must be replaced anyway only if none is unused.
            worker = min(free, key=lambda w: (w.used if task.fresh else not w.ready, w.name))
            self._queue.remove(task)
            worker.task = task
            if task.fresh and worker.used:
                self._stop(worker)
                self._start(worker)
            elif worker.ready:
                self._send(worker)

    def _send(self, worker: _Worker) -> None:
        assert worker.task is not None
        assert worker.connection is not None
        worker.since, worker.used = time.monotonic(), True
        try:
            worker.connection.send(("job", worker.task.job))
        except OSError:
            self._died(worker)

    def _hear(self, worker: _Worker, connection: Connection) -> None:
        if worker.connection is not connection:  # of a process that was replaced since
            return
        try:
            kind, *rest = connection.recv()
        except Exception:  # the stream ended, perhaps in the middle of a message
            self._died(worker)
            return
        if kind == "log":
            self._log(worker, *rest)
        elif kind == "ready":
            worker.ready, worker.starts = True, 0
            if worker.task is not None:
                self._send(worker)
        elif kind == "broken":
            failure: Failure = rest[0]
            self._broken(worker, f"The problem cannot be set up: {failure.message}", failure.traceback)
        else:
            self._done(worker, rest[0])

    def _ended(self, worker: _Worker, process: subprocess.Popen[bytes] | None) -> None:
        """A process is over; what it said last counts."""
        while worker.process is process:
            assert worker.connection is not None
            if worker.connection.poll():
                self._hear(worker, worker.connection)
            else:
                self._died(worker)

    def _done(self, worker: _Worker, outcome: Outcome) -> None:
        task, worker.task = worker.task, None
        worker.done += 1
        worker.failed += isinstance(outcome, Failure)
        worker.since = time.monotonic()
        assert task is not None
        task.future.set_result(outcome)

    def _died(self, worker: _Worker, reason: Failure | None = None) -> None:
        """A worker is gone, or has to go: its job failed; another takes its place."""
        self._read(worker)
        was_ready = worker.ready
        code = self._stop(worker)
        failure = reason or Failure("killed", f"The worker {_death(code)}.", worker.last_words())
        if not was_ready:
            worker.starts += 1
            if worker.starts >= STARTS:
                self._broken(worker, f"A worker {_death(code)} while it set the problem up.", worker.last_words())
                return
            logger.warning(
                "%s %s while it set the problem up; starting it again.", worker.name.capitalize(), _death(code)
            )
        elif worker.task is not None:
            self._done(worker, failure)
        self._start(worker)

    def _broken(self, worker: _Worker, message: str, trace: str) -> None:
        """A place where no worker can be set up is given up; with the last of them, everything is."""
        task, worker.task = worker.task, None
        self._stop(worker)
        self._workers.remove(worker)
        self.capacity = max(1, len(self._workers))
        if task is not None:
            self._queue.appendleft(task)
        if self._workers:
            logger.warning("%s Going on with %d workers.", message, len(self._workers))
        else:
            self._broken_by = WorkerError(message, trace)
            self._give_up(self._broken_by)

    def _give_up(self, error: WorkerError) -> None:
        with self._lock:
            tasks = [*self._queue, *(w.task for w in self._workers if w.task)]
            self._queue.clear()
            for worker in self._workers:
                worker.task = None
        for task in tasks:
            task.future.set_exception(error)

    def _stop_the_late(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = worker.task.limit if worker.task and worker.ready else None
            if limit is not None and now - worker.since > limit:
                assert worker.task is not None
                message = f"The {worker.task.job.kind} job took more than {limit:.3g} s, the timeout; it was stopped."
                self._died(worker, Failure("timeout", message, worker.last_words()))

    def _patience(self) -> float | None:
        """Seconds until the next job is late."""
        now = time.monotonic()
        left = [w.since + w.task.limit - now for w in self._workers if w.task and w.ready and w.task.limit is not None]
        return max(0.0, min(left)) + 0.01 if left else None

    def _read(self, worker: _Worker) -> None:
        """Take what a worker printed: it would wait if nobody did."""
        if worker.process is None:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(worker.output, 65536):
                worker.printed += data
                del worker.printed[:-TAIL]
                for line in data.decode(errors="replace").splitlines():
                    logger.debug("%s", line, extra={"worker": worker.name})
            worker.mute = True

    def _log(self, worker: _Worker, level: int, message: str) -> None:
        """What every worker says while it sets up is said once."""
        if not worker.ready and message in self._said:
            return
        self._said.add(message)
        logger.log(level, message, extra={"worker": worker.name})


def portable(problem: Problem) -> bytes:
    """The pickle of a problem that another process can rebuild it from.

    Raises:
        NotPortable: its class is defined where no other process finds it, or it holds what cannot be pickled.
    """
    kind = type(problem)
    try:
        pickled = pickle.dumps(problem)
    except Exception as error:
        raise NotPortable(
            f"{kind.__name__} cannot be sent to another process: {type(error).__name__}: {error}. "
            "Let its constructor keep plain values, and load everything else in setup()."
        ) from error
    if b"__main__" in pickled and not hasattr(__main__, "__file__"):
        raise NotPortable(
            f"{kind.__name__} is defined in a notebook or at the interpreter's prompt, where other processes do not "
            "find it; put it into a file and import it from there."
        )
    return pickled


def _preparation(pickled: bytes) -> dict[str, Any]:
    """What a worker needs to find the problem's class; the main file only if it is there."""
    data: dict[str, Any] = spawn.get_preparation_data("moopt worker")
    if b"__main__" not in pickled:
        data = {key: value for key, value in data.items() if not key.startswith("init_main")}
    data.pop("authkey", None)
    return data


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with the exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else "?"
    cause = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by signal {-code}, {name}{cause}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _until(futures: list[Future[Outcome]], grace: float) -> Iterator[Future[Outcome]]:
    """Futures as they end, within the grace."""
    from concurrent.futures import as_completed

    yield from as_completed(futures, timeout=grace)
