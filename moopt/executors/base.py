"""The contract of an executor: it runs jobs and says what came of them. It never retries and never stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future

from moopt.jobs import Job, Outcome


class Executor(ABC):
    """Runs jobs on workers that have set up the problem once."""

    capacity: int
    """How many jobs it runs at a time."""

    @abstractmethod
    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job. The future's result is an `Evaluation` or a `Failure`, never an exception of the job."""

    @abstractmethod
    def close(self, grace: float = 0.0) -> None:
        """Let running jobs end for `grace` seconds, then stop the workers."""
