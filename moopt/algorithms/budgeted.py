"""What algorithms share that search at given costs: which costs those are, and choices of options beside candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from moopt import known_budgets
from moopt.algorithms.base import Algorithm, positive
from moopt.algorithms.opening import configuration, discrete_names
from moopt.budgets import Knapsack
from moopt.errors import AlgorithmError
from moopt.jobs import Job
from moopt.problem import HasCosts, HasMoves, Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Budgets: TypeAlias = Sequence[int] | Mapping[str, float | Sequence[float]] | None
"""Costs, or bounds by the name of a known objective, such as {"size_mb": [80, 88]}; None: those of the baselines."""

BUDGETS = 5
"""Budgets, evenly between the least and the most, where no baseline lies between those."""


class Budgeted(Algorithm):
    """Lowers one measured objective, the loss, at several budgets. Costs are whole numbers, decisions discrete.

    Args:
        budgets: Upper bounds on known objectives, such as {"size_mb": [80, 88]}, or costs in the unit of
            `problem.costs()`; None: the costs of the problem's baselines. One of several that leaves the cheapest or
            the dearest configuration alone has that one evaluated; there is nothing to search there.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"costs"})

    def __init__(self, budgets: Budgets = None) -> None:
        given: object = budgets  # whatever is given, a string too
        if isinstance(given, str) or not isinstance(given, Iterable | None):
            raise AlgorithmError(
                f"budgets is {budgets!r}; expected a list of whole numbers above 0, bounds by the name of a known "
                "objective, such as {'size_mb': [80, 88]}, or None."
            )
        self.budgets: list[int] | dict[str, list[float]] | None
        if isinstance(budgets, Mapping):
            self.budgets = known_budgets.checked(budgets)
        else:
            self.budgets = None if budgets is None else sorted({positive("a budget", b) for b in budgets})

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        assert isinstance(problem, HasCosts)
        mine = type(self).__name__
        if not all(variable.discrete for variable in problem.space.values()):
            raise AlgorithmError(
                f"{mine} needs discrete decisions; the space has a Float. To search within bounds "
                "what has numbers too, give a preference in place of budgets: Preference(bounds={'size_mb': 80})."
            )
        self._costs: IntArray = problem.costs()
        self._names = discrete_names(problem)
        measured = [i for i, objective in enumerate(problem.objectives) if not objective.known]
        if not measured:
            raise AlgorithmError(f"{mine} improves a measured objective; all of the problem's are known.")
        self._loss = measured[0]
        self._ends: list[Config] = []
        self._most: int | None = None
        self._amounts = self._chosen_budgets(problem)
        self._most = None if self.budgets is None else max(self._amounts)

    def _chosen_budgets(self, problem: Problem) -> list[int]:
        """The costs to search at, strictly between the cheapest and the dearest configuration."""
        knapsack, mine = Knapsack(-self._costs, self._costs), type(self).__name__
        least, most = knapsack.least, knapsack.most
        given = self.budgets
        if given is None:
            found = sorted({self._cost(config) for config in problem.baselines().values()})
        else:
            found = known_budgets.amounts(problem, given) if isinstance(given, dict) else given
            if outside := [b for b in found if not least <= b <= most]:
                raise AlgorithmError(
                    f"{mine} has the budgets {outside}; expected costs between {least}, of the cheapest configuration, "
                    f"and {most}, of the dearest."
                )
            ends = [self._configuration(knapsack.at(b)) for b in found if b in (least, most)]
            self._ends = [config for config in ends if self.within_known_bounds(config)]
        between = [b for b in found if least < b < most]
        if not between and given is None:
            evenly = np.linspace(least, most, BUDGETS + 2)[1:-1]
            between = sorted({int(b) for b in evenly if least < int(b)})
        if not between:
            raise AlgorithmError(
                f"{mine} has nothing to search: within {given} is the cheapest or the dearest configuration "
                f"alone; expected a budget that leaves others a choice. They cost {least} and {most}."
            )
        return between

    def within_known_bounds(self, config: Config) -> bool:
        """Whether a candidate costs no more than the largest budget that was given, beside what is known otherwise."""
        affordable = self._most is None or config in self._ends or self._cost(config) <= self._most
        return affordable and super().within_known_bounds(config)

    def _lowered(self) -> int:
        """At about how many budgets it will search."""
        if isinstance(self.budgets, dict):
            return sum(map(len, self.budgets.values()))
        return len(self.budgets or range(BUDGETS))

    def _configuration(self, choice: IntArray) -> Config:
        """The configuration of options [decisions]."""
        return configuration(self.problem, choice)

    def _choice(self, config: Config) -> IntArray:
        """The options [decisions] of a configuration."""
        codes = self.problem.space.encode(config) - self.problem.space.lower
        return codes.astype(np.int64)

    def _cost(self, config: Config) -> int:
        return int(self._costs[np.arange(len(self._names)), self._choice(config)].sum())

    def _variations(self, n: int, parents: Sequence[Config], before: Iterable[Config] = ()) -> list[Job]:
        """Where the algorithm has no step to take: what is given before, then variations of parents, or random ones."""
        rng, space = self.rng(), self.problem.space

        def draws() -> Iterator[Config]:
            yield from before
            while True:
                if not parents:
                    yield space.sample(rng)
                    continue
                parent = parents[int(rng.integers(len(parents)))]
                moved = self.problem.moves(parent, rng) if isinstance(self.problem, HasMoves) else parent
                near = list(space.neighbours(moved))
                yield moved if isinstance(self.problem, HasMoves) else near[int(rng.integers(len(near)))]

        return self.jobs(self.unseen(draws(), n, rng))
