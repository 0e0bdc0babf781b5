"""Jobs in processes of this machine: each loads the problem once and keeps it; one that dies is replaced.

One thread talks to all workers. What a worker is and says is in `worker.py`, what it gets of the machine in
`placement.py`, which job goes to which in `pool.py`.
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
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import spawn
from multiprocessing.connection import Connection, wait
from typing import Any

import __main__
from moopt.errors import NotPortable, WorkerError
from moopt.executors.base import Executor, WorkerState
from moopt.executors.placement import Place, places
from moopt.executors.pool import Pool, Slot
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Problem, Resources

logger = logging.getLogger("moopt")

TAIL = 8192
"""Bytes kept of what a worker printed last, for the reason of its death."""
FAREWELL = 2.0
"""Seconds that an idle worker with a GPU has to end by itself."""


@dataclass(eq=False)
class _Process:
    """A worker's process, and the descriptors by which it is heard.

    Attributes:
        leash: What ends it and all that it started when we close it, or are gone.
        sentinel: Readable once it has ended, where the system has such a thing; it may leave its sockets to a child.
        output: What it prints; None once it has closed that.
        printed: The end of what it printed.
        begun: A line of that which is not whole yet.
        jobs: How many it was given; the last one is answered by that number.
    """

    popen: subprocess.Popen[bytes]
    connection: Connection
    leash: int
    sentinel: int | None
    output: int | None
    printed: bytearray = field(default_factory=bytearray)
    begun: bytes = b""
    jobs: int = 0

    def read(self) -> list[str]:
        """Take what it printed: it would wait if nobody did."""
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while self.output is not None:
                data = os.read(self.output, 65536)
                if not data:
                    self.output = None
                self.printed += data
                del self.printed[:-TAIL]
                *whole, self.begun = (self.begun + data).split(b"\n")
                if not data or len(self.begun) > TAIL:
                    whole, self.begun = [*whole, self.begun], b""
                lines += [line.decode(errors="replace") for line in whole if line]
        return lines

    def end(self, patience: float) -> int:
        """Stop it and all that it started, at once or after so many seconds; its exit code."""
        self.connection.close()
        if self.sentinel is not None:
            os.close(self.sentinel)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)  # it leads a session of its own
        os.close(self.leash)
        code = self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


@dataclass(eq=False)
class _Worker(Slot):
    """A place with the process that serves it now."""

    share: Place = field(kw_only=True)
    process: _Process | None = None


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
        self._pickled = portable(problem)
        slots = [_Worker(f"worker {i}", share.label, share=share) for i, share in enumerate(places(workers, resources))]
        self._pool: Pool[_Worker] = Pool(self, slots, problem, timeout)
        self._said: set[str] = set()
        self._wakened, self._waken = os.pipe()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        with self._pool.lock:
            if self._closing:
                raise WorkerError("The executor is closed.")
            future = self._pool.add(job, fresh)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="moopt workers", daemon=True)
                self._thread.start()
        os.write(self._waken, b".")
        return future

    def workers(self) -> Sequence[WorkerState]:
        return self._pool.states()

    def close(self, grace: float = 0.0) -> None:
        if self._closing:
            return
        self._pool.settle(grace)
        self._closing = True
        os.write(self._waken, b".")
        if self._thread is not None:
            self._thread.join()
        os.close(self._waken)
        os.close(self._wakened)

    # What follows runs in the one thread that talks to the workers.

    def _serve(self) -> None:
        pool, error = self._pool, WorkerError("The workers were stopped.")
        try:
            with pool.lock:
                for worker in pool.slots:
                    pool.start(worker)
            while not self._closing:
                with pool.lock:
                    pool.assign()
                    # With its process: descriptors are used again as soon as that is replaced.
                    heard = {
                        source: (worker, worker.process)
                        for worker in pool.slots if worker.process is not None
                        for source in (worker.process.output, worker.process.connection, worker.process.sentinel)
                        if source is not None
                    }  # fmt: skip
                found = wait([self._wakened, *heard], self._pool.quiet() + 0.01)
                with pool.lock:
                    if self._wakened in found:
                        os.read(self._wakened, 4096)
                    for worker, process in dict.fromkeys(heard[source] for source in found if source in heard):
                        self._attend(worker, process)
                    self._stop_the_late()
        except BaseException as fault:  # of ours: nobody may wait for ever
            logger.exception("The workers' thread failed.")
            error = WorkerError(f"The workers cannot be served: {type(fault).__name__}: {fault}")
        finally:
            with pool.lock:
                pool.give_up(error)

    def _attend(self, worker: _Worker, process: _Process) -> None:
        """Take in what a process printed and said, and whether it is over."""
        self._log_lines(worker, process)
        while worker.process is process:
            over = process.popen.poll() is not None  # before the last look at what it said
            if process.connection.poll():
                self._hear(worker, process)
            elif over:
                self._died(worker)
            else:
                return

    def start(self, slot: _Worker) -> None:
        ours, theirs = socket.socketpair()
        end, leash = os.pipe()
        served = f"from moopt.executors.worker import main; main({theirs.fileno()}, {end})"
        with theirs, open(end, "rb"):
            popen = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {served}"],
                pass_fds=[theirs.fileno(), end],
                env={**os.environ, **slot.share.environment, "MOOPT_WORKER": slot.name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert popen.stdout is not None
        output = popen.stdout.fileno()
        os.set_blocking(output, False)
        sentinel = os.pidfd_open(popen.pid) if hasattr(os, "pidfd_open") else None
        slot.process = _Process(popen, Connection(ours.detach()), leash, sentinel, output)
        slot.place = f"{slot.share.label}, process {popen.pid}"
        with contextlib.suppress(OSError):  # it is gone already: heard of next
            preparation = _preparation(self._pickled)
            slot.process.connection.send(("problem", preparation, self._pickled, slot.share.resources))

    def stop(self, slot: _Worker) -> None:
        process, slot.process = slot.process, None
        if process is not None:
            on_gpu = slot.task is None and "CUDA_VISIBLE_DEVICES" in slot.share.environment
            process.end(FAREWELL if on_gpu else 0)  # a GPU's context is best left in peace

    def send(self, slot: _Worker) -> None:
        assert slot.task is not None
        assert slot.process is not None
        slot.process.jobs += 1
        with contextlib.suppress(OSError):  # it is gone: heard of next
            slot.process.connection.send(("job", slot.process.jobs, slot.task.job))

    def _hear(self, worker: _Worker, process: _Process) -> None:
        try:
            kind, *rest = process.connection.recv()
        except Exception:  # the stream ended, perhaps in the middle of a message
            self._died(worker)
            return
        match kind, rest:
            case "log", [int(level), str(message)]:
                self._log(worker, level, message)
            case "ready", [] if not worker.ready:
                self._pool.is_ready(worker)
            case "broken", [Failure() as failure] if not worker.ready:
                self._pool.broken(worker, failure)
            case "done", [int(number), Evaluation() | Failure() as outcome]:
                if worker.task is not None and number == process.jobs:  # else of a job that was answered already
                    self._pool.finished(worker, outcome)
            case _:
                self._died(worker, Failure("contract", f"The worker said {kind!r}, which nobody asked for."))

    def _died(self, worker: _Worker, reason: Failure | None = None) -> None:
        """A worker is gone, or has to go."""
        process, worker.process = worker.process, None
        assert process is not None
        self._log_lines(worker, process)
        code = process.end(0)
        failure = reason or Failure("killed", f"The worker {_death(code)}.")
        last_words = process.printed.decode(errors="replace").strip()
        self._pool.died(worker, Failure(failure.kind, failure.message, last_words))

    def _stop_the_late(self) -> None:
        self._pool.watch_setups()
        for worker in list(self._pool.slots):
            left = self._pool.left(worker)
            if worker.ready and worker.task is not None and left is not None and left <= 0:
                self._died(worker, worker.task.late())

    def _log_lines(self, worker: _Worker, process: _Process) -> None:
        for line in process.read():
            logger.debug("%s", line, extra={"worker": worker.name})

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
    if b"__main__" in pickled and not os.path.isfile(getattr(__main__, "__file__", None) or ""):
        raise NotPortable(
            f"{kind.__name__} is defined in a notebook, at the interpreter's prompt or in its standard input, where "
            "other processes do not find it; put it into a file and import it from there."
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
