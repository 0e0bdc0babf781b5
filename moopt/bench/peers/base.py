"""What the loops of others share: jobs in, numbers out, the problem's baselines first."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from moopt.errors import StudyError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]


class Peer(ABC):
    """A loop that suggests one configuration after the other.

    Args:
        what: Which of the library's algorithms.
        problem: What is searched.
        evaluations: How many there will be.
        seed: For every draw of the loop.
    """

    def __init__(self, what: str, problem: Problem, evaluations: int, seed: int) -> None:
        self.what, self.problem, self.evaluations, self.seed = what, problem, evaluations, seed
        self.baselines = [problem.space.validate(config) for config in problem.baselines().values()]
        self._trials = 0
        self.start()

    def ask(self) -> Job:
        """The next evaluation."""
        job = Job(self._trials, self.suggest(), fidelity=self.problem.fidelity)
        self._trials += 1
        return job

    def tell(self, job: Job, outcome: Outcome) -> None:
        """What came of it: objectives to be minimised, and by what each constraint is exceeded."""
        if isinstance(outcome, Failure):
            raise StudyError(f"An evaluation failed, and {self.what} cannot be told so: {outcome.message}")
        values = {**self.problem.known(job.config), **outcome.values}
        objectives = np.array([values[o.name] * o.sign for o in self.problem.objectives])
        constraints = np.array([values[c.name] - c.bound for c in self.problem.constraints])
        self.learn(job.config, objectives, constraints)

    def believed(self) -> FloatArray | None:
        """Nothing but what was measured."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Set up what is searched with."""

    @abstractmethod
    def suggest(self) -> Config:
        """The next configuration."""

    @abstractmethod
    def learn(self, config: Config, objectives: FloatArray, constraints: FloatArray) -> None:
        """A configuration's objectives [m], to be minimised, and its constraints [c], 0 or less where they hold."""

    def population(self) -> int:
        """A population's size for so few evaluations: a tenth of them, from 12 to 100."""
        return int(np.clip(self.evaluations // 10, 12, 100))
