"""pymoo's NSGA-II and NSGA-III by ask and tell, with its operators' defaults; levels are rounded real numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem
from pymoo.util.ref_dirs import get_reference_directions

from moopt.bench.peers.base import FloatArray, Peer
from moopt.space import Config


class PymooLoop(Peer):
    """NSGA-II or NSGA-III: a first population of the baselines and random candidates, then as pymoo breeds it."""

    def start(self) -> None:
        space, size = self.problem.space, self.population()
        rng = np.random.default_rng(self.seed)
        random = [space.sample(rng) for _ in range(size - len(self.baselines))]
        first = np.array([space.encode(config) for config in [*self.baselines, *random]])
        rounding = _Rounding(space.discrete)
        operators: dict[str, Any] = {
            "sampling": first,
            "crossover": SBX(prob=0.9, eta=15, repair=rounding),
            "mutation": PM(eta=20, repair=rounding),
        }
        if self.what == "nsga3":
            operators["ref_dirs"] = _directions(len(self.problem.objectives), size)
        self._algorithm = {"nsga2": NSGA2, "nsga3": NSGA3}[self.what](pop_size=len(first), **operators)
        self._described = PymooProblem(
            n_var=len(space), n_obj=len(self.problem.objectives), n_ieq_constr=len(self.problem.constraints),
            xl=space.lower, xu=space.upper,
        )  # fmt: skip
        self._algorithm.setup(self._described, termination=NoTermination(), seed=self.seed, verbose=False)
        self._population: Any = None
        self._told: list[tuple[FloatArray, FloatArray]] = []

    def suggest(self) -> Config:
        if self._population is None:
            self._population = self._algorithm.ask()
        return self.problem.space.decode(self._population[len(self._told)].X)

    def learn(self, config: Config, objectives: FloatArray, constraints: FloatArray) -> None:
        self._told.append((objectives, constraints))
        if len(self._told) == len(self._population):
            values, violations = (np.array(column) for column in zip(*self._told, strict=True))
            static = StaticProblem(self._described, F=values, G=violations)
            Evaluator().eval(static, self._population)
            self._algorithm.tell(infills=self._population)
            self._population, self._told = None, []


class _Rounding(Repair):  # type: ignore[misc]
    """Rounds the variables that are discrete."""

    def __init__(self, discrete: Any) -> None:
        super().__init__()
        self._discrete = discrete

    def _do(self, problem: Any, X: Any, **settings: Any) -> Any:
        return np.where(self._discrete, np.around(X), X)


def _directions(objectives: int, size: int) -> FloatArray:
    """Das and Dennis's directions [n, m], as many as fit into the population."""
    partitions = 1
    while math.comb(partitions + objectives, objectives - 1) <= size:
        partitions += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=partitions), dtype=float)
