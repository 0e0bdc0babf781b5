"""Jobs in this very process, one after the other: no workers to start, and problems from a notebook work."""

from __future__ import annotations

from concurrent.futures import Future

from moopt.errors import ExecutorError
from moopt.executors.base import Executor
from moopt.jobs import Job, Outcome, perform
from moopt.problem import Problem, Resources


class InlineExecutor(Executor):
    """Runs a job when it is submitted; sets the problem up before the first. Has no fresh workers."""

    capacity = 1

    def __init__(self, problem: Problem, resources: Resources) -> None:
        self._problem = problem
        self._resources = resources
        self._ready = False

    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        if not self._ready:
            self._problem.setup(self._resources)
            self._ready = True
        future: Future[Outcome] = Future()
        future.set_result(perform(self._problem, job))
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
