"""Optuna's samplers by ask and tell in a study in memory, with their defaults; levels are integers."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna import samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from moopt.bench.peers.base import FloatArray, Peer
from moopt.space import Choice, Config, Float, Ordinal


class OptunaLoop(Peer):
    """TPE, the Gaussian process or NSGA-II: the baselines enqueued, then what the sampler suggests."""

    def start(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self.what:
                case "gp":
                    sampler: samplers.BaseSampler = samplers.GPSampler(seed=self.seed)
                case "nsga2":
                    sampler = samplers.NSGAIISampler(seed=self.seed, population_size=self.population())
                case _:
                    sampler = samplers.TPESampler(seed=self.seed)
        self._study = optuna.create_study(directions=["minimize"] * len(self.problem.objectives), sampler=sampler)
        for config in self.baselines:
            self._study.enqueue_trial(self._parameters(config))
        self._distributions = {name: _distribution(variable) for name, variable in self.problem.space.items()}

    def suggest(self) -> Config:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the Gaussian process's fit
            self._trial = self._study.ask(self._distributions)
        found = self._trial.params
        space = self.problem.space
        return {n: v.values[found[n]] if isinstance(v, Ordinal) else found[n] for n, v in space.items()}

    def learn(self, config: Config, objectives: FloatArray, constraints: FloatArray) -> None:
        for constraint, value in zip(self.problem.constraints, constraints, strict=True):
            self._trial.set_constraint(constraint.name, float(value))
        self._study.tell(self._trial, objectives.tolist())

    def _parameters(self, config: Config) -> dict[str, Any]:
        space = self.problem.space
        return {n: int(v.encode(config[n])) if isinstance(v, Ordinal) else config[n] for n, v in space.items()}


def _distribution(variable: Any) -> BaseDistribution:
    if isinstance(variable, Choice):
        return CategoricalDistribution(variable.values)
    if isinstance(variable, Float):
        return FloatDistribution(variable.lower, variable.upper)
    return IntDistribution(int(variable.lower), int(variable.upper))
