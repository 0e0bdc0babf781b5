"""What algorithms share that go on in rounds: one is planned when all before it is under way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moopt.algorithms.base import Algorithm
from moopt.algorithms.variation import spread
from moopt.jobs import Job, Outcome
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]

SPREAD = 16
"""Candidates over the space that are asked for at a time where a round has nothing new."""


class Rounds(Algorithm):
    """Asks for what `plan` proposes, and plans again when all of that is under way.

    Where the plan is empty, it waits for what is pending; where nothing is, it spreads candidates over the space. A
    plan is made from what was told and the number of the next trial alone, so that a replayed log makes it again.
    """

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._queue: list[Config] = []
        self._open: dict[int, Config] = {}
        self._planned: tuple[tuple[int, int, int], list[Config]] | None = None

    @abstractmethod
    def plan(self, rng: np.random.Generator) -> list[Config]:
        """The candidates of the next round, none of them issued before; none: what is pending has to be known first."""

    @property
    def upcoming(self) -> int:
        """The number of the next trial that is in no plan yet."""
        return self.next_trial + len(self._waiting())

    def ask(self, n: int) -> list[Job]:
        waiting = self._waiting()
        return self.jobs((waiting if len(waiting) >= n else [*waiting, *self._plan()])[:n])

    def issued(self, jobs: Sequence[Job]) -> None:
        own, waiting = [job for job in jobs if job.kind == "evaluate"], self._waiting()
        if any(job.label is None and job.config not in waiting for job in own):
            self._queue = [*waiting, *self._plan()]
        super().issued(jobs)
        self._open |= {job.trial: job.config for job in own}

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, _ in outcomes:
            if job.kind == "evaluate":
                self._open.pop(job.trial, None)

    def _waiting(self) -> list[Config]:
        """What is planned and not issued yet."""
        return [config for config in self._queue if not self.seen(config)]

    def asked(self) -> list[Config]:
        """All that was told, is under way or planned."""
        return [*(job.config for job in self.archive.jobs), *self._open.values(), *self._waiting()]

    def _plan(self) -> list[Config]:
        """The next round, planned once for what is known now; nothing of it is in the present one."""
        key = len(self.archive), self.next_trial, len(self._open)
        if self._planned is None or self._planned[0] != key:
            rng, waiting = self.rng(), self._waiting()
            found = [config for config in self.plan(rng) if config not in waiting]
            if not found and not waiting and not self._open:
                found = self.unseen(spread(self.problem, SPREAD, rng), SPREAD, rng)
            self._planned = key, found
        return self._planned[1]

    def units(self) -> FloatArray:
        """What was told, each variable scaled to [0, 1], [n, d]."""
        return self.unit(np.array(self.archive.codes).reshape(-1, len(self.problem.space)))

    def unit(self, codes: FloatArray) -> FloatArray:
        """Encoded configurations [n, d] with each variable scaled to [0, 1]."""
        return self.problem.space.units(codes)

    def config(self, unit: FloatArray) -> Config:
        """The configuration at a point [d] of the unit cube."""
        space = self.problem.space
        return space.decode(space.lower + unit * (space.upper - space.lower))
