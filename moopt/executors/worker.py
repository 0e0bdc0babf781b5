"""A worker process: rebuilds the problem, sets it up once, runs the jobs it is sent. Its coordinator starts it.

Messages are pickled tuples over a socket. To the worker: ("problem", ...) once, then ("job", number, Job). From it:
("ready",) or ("broken", Failure), then ("done", number, Outcome), and ("log", level, message) at any time. An end of
the stream from the coordinator ends the worker; its death ends all that the worker started too.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import pickle
import signal
import threading
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

from moopt.jobs import Failure, perform, set_up
from moopt.leash import hold
from moopt.problem import Problem


class _Forwarding(logging.Handler):
    """Sends log records to the coordinator, which knows where they are to go."""

    def __init__(self, connection: Connection, lock: threading.Lock) -> None:
        super().__init__()
        self._connection, self._lock, self._process = connection, lock, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process:  # a child that an evaluation forked
            return
        with self._lock:
            self._connection.send(("log", record.levelno, record.getMessage()))


def main(descriptor: int, leash: int) -> None:
    """Serve one coordinator until it closes its end of a socket, or its end of a pipe, the leash, is closed for it."""
    hold(leash)
    os.close(leash)
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
            _, number, job = connection.recv()
            outcome = perform(problem, job)
            with lock:
                connection.send(("done", number, outcome))
    except (EOFError, ConnectionError):  # the coordinator is done with us, or gone
        return


def _rebuilt(preparation: dict[str, Any], pickled: bytes) -> Problem:
    spawn.prepare(preparation)
    problem: Problem = pickle.loads(pickled)
    del os.environ["MOOPT_WORKER"]  # the file that defines the problem is read: a study may be run now
    return problem
