"""A worker process: rebuilds the problem, sets it up once, runs the jobs it is sent. Its coordinator starts it.

    python -m moopt.executors.worker DESCRIPTOR

Messages are pickled tuples over a socket. To the worker: ("problem", ...) once, then ("job", Job). From it: ("ready",)
or ("broken", Failure), then ("done", Outcome), and ("log", level, message) at any time. An end of the stream from the
coordinator ends the worker.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

from moopt.jobs import Failure, perform, set_up
from moopt.problem import Problem

PARENT_EVERY = 1.0
"""Seconds between two looks at whether the coordinator still lives."""


class _Forwarding(logging.Handler):
    """Sends log records to the coordinator, which knows where they are to go."""

    def __init__(self, connection: Connection, lock: threading.Lock) -> None:
        super().__init__()
        self._connection, self._lock = connection, lock

    def emit(self, record: logging.LogRecord) -> None:
        with self._lock:
            self._connection.send(("log", record.levelno, record.getMessage()))


def main(descriptor: int) -> None:
    """Serve one coordinator until it closes its end."""
    _die_with(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; ours decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable()  # a crash leaves its traceback on standard error, which the coordinator keeps the end of
    connection, lock = Connection(descriptor), threading.Lock()
    try:
        kind, preparation, pickled, resources = connection.recv()
        assert kind == "problem"
        logger = logging.getLogger("moopt")
        logger.addHandler(_Forwarding(connection, lock))
        logger.setLevel(logging.INFO)
        logger.propagate = False
        problem = set_up(lambda: _rebuilt(preparation, pickled), resources)
        first: tuple[Any, ...] = ("broken", problem) if isinstance(problem, Failure) else ("ready",)
        with lock:
            connection.send(first)
        while not isinstance(problem, Failure):
            _, job = connection.recv()
            outcome = perform(problem, job)
            with lock:
                connection.send(("done", outcome))
    except (EOFError, ConnectionError):  # the coordinator is done with us, or gone
        return


def _rebuilt(preparation: dict[str, Any], pickled: bytes) -> Problem:
    spawn.prepare(preparation)
    problem: Problem = pickle.loads(pickled)
    return problem


def _die_with(parent: int) -> None:
    """End when the coordinator does, even if it is killed while an evaluation is in a library that never returns."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
