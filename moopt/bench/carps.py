"""Lets carps (Benjamins et al. 2025) drive moopt's algorithms on its tasks. Needs the package carps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moopt import pareto
from moopt.algorithms import Algorithm
from moopt.bench.searchers import algorithm as named
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job
from moopt.problem import Evaluation, Fidelity, Objective, Problem
from moopt.space import Choice, Config, Float, Integer, Ordinal, Space, Variable

try:
    from carps.optimizers.optimizer import Optimizer
    from carps.utils.trials import StatusType, TrialInfo, TrialValue
    from ConfigSpace import Configuration, ConfigurationSpace
    from ConfigSpace import hyperparameters as kinds
except ModuleNotFoundError as error:
    raise AlgorithmError(
        f"Driving moopt from carps needs carps, and {error.name} is not installed: pip install -e '.[carps]' in the "
        "clone."
    ) from None


class CarpsOptimizer(Optimizer):  # type: ignore[misc]
    """One of moopt's algorithms as an optimizer of carps.

    Args:
        task: carps' task: its space may have no conditions and no forbidden clauses; fidelities are not used.
        algorithm: A name of `moopt.algorithms`, with settings if need be: "nsga2@population_size=20".
        seed: The same seed gives the same trials.
        loggers: carps' loggers.
        expects_multiple_objectives: As carps has it.
        expects_fidelities: As carps has it.

    Raises:
        AlgorithmError: there is no such algorithm, or it cannot search the task's space.
    """

    def __init__(
        self, task: Any, algorithm: str = "nsga2", seed: int = 0, loggers: list[Any] | None = None,
        expects_multiple_objectives: bool = False, expects_fidelities: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(task, loggers, expects_multiple_objectives, expects_fidelities)
        self._named, self._seed = named(algorithm), seed
        self._configspace: ConfigurationSpace = task.input_space.configuration_space
        self._hyperparameters = {h.name: _variable(h) for h in self._configspace.values()}
        self._jobs: dict[str, Job] = {}
        self._told: list[tuple[TrialInfo, TrialValue]] = []

    def convert_configspace(self, configspace: ConfigurationSpace) -> Space:
        """The space as moopt has it; a logarithmic variable is its logarithm, anything listed its place."""
        if configspace.conditions or configspace.forbidden_clauses:
            raise AlgorithmError("moopt has no conditional variables or forbidden clauses; the task's space has some.")
        return Space({h.name: _variable(h).variable for h in configspace.values()})

    def convert_to_trial(self, job: Job) -> TrialInfo:
        """A job as carps has it."""
        values = {name: self._hyperparameters[name].value(code) for name, code in job.config.items()}
        return TrialInfo(config=Configuration(self._configspace, values=values), name=f"trial {job.trial}")

    def _setup_optimizer(self) -> Algorithm:
        space = self.convert_configspace(self._configspace)
        self._named.start(_Task(space, self.task.output_space.n_objectives), self._seed)
        return self._named

    def ask(self) -> TrialInfo:
        """The next trial."""
        jobs = self.solver.ask(1)
        if not jobs:
            raise AlgorithmError("Nothing new is left to try: the task's space is exhausted.")
        self.solver.issued(jobs)
        trial = self.convert_to_trial(jobs[0])
        self._jobs[trial.name] = jobs[0]
        return trial

    def tell(self, trial_info: TrialInfo, trial_value: TrialValue) -> None:
        """A trial's costs, to be minimised."""
        costs = np.atleast_1d(trial_value.cost)
        if trial_value.status == StatusType.SUCCESS and np.isfinite(costs).all():
            outcome: Evaluation | Failure = Evaluation({f"f{j}": float(cost) for j, cost in enumerate(costs)})
            self._told.append((trial_info, trial_value))
        else:
            outcome = Failure(trial_value.status.name, "carps reports that the trial did not succeed.")
        self.solver.tell([(self._jobs.pop(trial_info.name), outcome)])

    def get_current_incumbent(self) -> Any:
        """The best trial, or the front where there are several objectives; None before there is one."""
        if not self._told:
            return None
        costs = np.array([np.atleast_1d(value.cost) for _, value in self._told])
        front = [self._told[i] for i in np.flatnonzero(pareto.nondominated(costs))]
        return front if costs.shape[1] > 1 else front[0]


class _Task(Problem):
    """What an algorithm sees of carps' task. carps evaluates."""

    def __init__(self, space: Space, objectives: int) -> None:
        self.space = space
        self.objectives = tuple(Objective(f"f{j}") for j in range(objectives))

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        raise AlgorithmError("carps evaluates its tasks itself.")


class _Hyperparameter(NamedTuple):
    """A variable, and carps' value of one of its values."""

    variable: Variable
    value: Callable[[Any], Any]


def _variable(hyperparameter: Any) -> _Hyperparameter:
    match hyperparameter:
        case kinds.UniformFloatHyperparameter(lower=low, upper=high, log=True):
            return _Hyperparameter(
                Float(math.log(low), math.log(high)), lambda code: float(np.clip(math.exp(code), low, high))
            )
        case kinds.UniformFloatHyperparameter(lower=low, upper=high):
            return _Hyperparameter(Float(low, high), float)
        case kinds.UniformIntegerHyperparameter(lower=low, upper=high):
            return _Hyperparameter(Integer(low, high), int)
        case kinds.CategoricalHyperparameter(choices=listed):
            return _Hyperparameter(Choice(*range(len(listed))), listed.__getitem__)
        case kinds.OrdinalHyperparameter(sequence=listed):
            return _Hyperparameter(Ordinal(*range(len(listed))), listed.__getitem__)
        case kinds.Constant(value=value):
            return _Hyperparameter(Ordinal(0), lambda _: value)
    raise AlgorithmError(f"moopt has no variable for {hyperparameter!r}; expected uniform, listed or constant ones.")
