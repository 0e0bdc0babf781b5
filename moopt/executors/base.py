"""The contract of an executor: it runs jobs and says what came of them. It never retries and never stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ClassVar

from moopt.jobs import Job, Outcome


@dataclass(frozen=True)
class WorkerState:
    """What a worker does now.

    Attributes:
        name: What it is called in logs and on screens.
        place: Where it is: a process id, a host, a GPU.
        job: What it runs; None while it starts or waits.
        seconds: For how long it has been running that.
        done: Jobs it has ended, failed ones included; those of workers it replaced count too.
        failed: Jobs of these that failed.
        ready: Whether it has set the problem up.
    """

    name: str
    place: str
    job: Job | None = None
    seconds: float = 0.0
    done: int = 0
    failed: int = 0
    ready: bool = True

    @property
    def doing(self) -> str:
        """What it does, in words."""
        if not self.ready:
            return "setting up"
        return "waiting" if self.job is None else self.job.doing


class JobFuture(Future[Outcome]):
    """What will come of a job.

    Attributes:
        seconds: What the job took on its worker, once it has ended: neither waiting for that nor setting it up.
    """

    seconds: float = 0.0


class Executor(ABC):
    """Runs jobs on workers that have set up the problem once."""

    isolated: ClassVar[bool] = False
    """Whether a job that kills its worker leaves the study alive, so that trying again on a fresh one makes sense."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many jobs it runs at a time."""

    @abstractmethod
    def submit(self, job: Job, *, fresh: bool = False) -> Future[Outcome]:
        """Start a job, where asked on a fresh worker.

        The future's result is an `Evaluation` or a `Failure`, never an exception of the job. Its exception is a
        `WorkerError`: no worker could be started or set up, so that no job can ever run. Of a future that is no
        `JobFuture` the time since this call is taken for what the job took.
        """

    @abstractmethod
    def close(self, grace: float = 0.0) -> None:
        """Let running jobs end for `grace` seconds, then stop the workers. Closing twice does nothing."""

    def workers(self) -> Sequence[WorkerState]:
        """What each worker does now."""
        return ()
