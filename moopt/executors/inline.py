"""Jobs in this very process, one after the other: no workers to start, and problems from a notebook work."""

from __future__ import annotations

import time

from moopt.errors import ExecutorError, WorkerError
from moopt.executors.base import Executor, JobFuture
from moopt.jobs import Failure, Job, perform, set_up
from moopt.problem import Problem, Resources


class InlineExecutor(Executor):
    """Runs a job when it is submitted; sets the problem up before the first. Has no fresh workers."""

    capacity = 1

    def __init__(self, problem: Problem, resources: Resources) -> None:
        self._problem = problem
        self._resources = resources
        self._ready = False

    def submit(self, job: Job, *, fresh: bool = False) -> JobFuture:
        future = JobFuture()
        if not self._ready:
            problem = set_up(lambda: self._problem, self._resources)
            if isinstance(problem, Failure):
                future.set_exception(WorkerError(problem.message, problem.traceback))
                return future
            self._ready = True
        began = time.perf_counter()
        outcome = perform(self._problem, job)
        future.seconds = time.perf_counter() - began
        future.set_result(outcome)
        return future

    def close(self, grace: float = 0.0) -> None:
        """Nothing runs between two calls."""


def in_this_process(problem: Problem, resources: Resources, workers: int, timeout: float | None) -> InlineExecutor:
    """An inline executor, if that can do what is asked.

    Raises:
        ExecutorError: several workers, or a timeout: nobody is there who could stop an evaluation.
    """
    if workers != 1 or timeout is not None:
        asked = f"{workers} workers" if workers != 1 else f"a timeout of {timeout} s"
        raise ExecutorError(f"The inline executor evaluates in this process: {asked} need executor='processes'.")
    return InlineExecutor(problem, resources)
