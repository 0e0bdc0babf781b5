"""Budgets in the user's units: upper bounds on known objectives, such as 80 MB, as whole costs. Searches nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.budgets import Knapsack
from moopt.errors import BudgetError
from moopt.problem import HasCosts, HasRepair, Problem, is_finite, known_values
from moopt.space import Config

IntArray = npt.NDArray[np.int64]

DRAWN = 32
"""Random configurations on which a known value is compared with what the costs say of it."""
APART = Fraction(1, 4)
"""How far from its cost, in units of the costs, a known value may place a configuration: rounding stays far below."""


def amounts(problem: Problem, bounds: Mapping[str, Sequence[float]]) -> list[int]:
    """The whole costs that bounds on known values allow, sorted; equal ones once.

    A configuration costs at most such an amount if and only if its known value is at most the bound.

    Args:
        problem: Has `costs`, and discrete decisions only.
        bounds: Bounds by the name of a known objective, in its unit.

    Raises:
        BudgetError: there is no such known objective, the costs do not decide it, or no configuration is within a
            bound, or every one is.
    """
    prices = {name: _price(problem, name) for name in bounds}
    return sorted({prices[name].within(bound) for name, several in bounds.items() for bound in several})


@dataclass(frozen=True)
class Price:
    """A known value that rises in proportion to what configurations cost.

    Attributes:
        problem: Whose value.
        name: Which.
        cheapest: The value of the cheapest configuration.
        dearest: That of the dearest.
        knapsack: Finds the dearest configuration within a cost.
    """

    problem: Problem
    name: str
    cheapest: float
    dearest: float
    knapsack: Knapsack

    def cost(self, value: float) -> Fraction:
        """The cost that belongs to a value, exact but for the rounding of the values themselves."""
        low, high = Fraction(self.cheapest), Fraction(self.dearest)
        return self.knapsack.least + (Fraction(value) - low) * (self.knapsack.most - self.knapsack.least) / (high - low)

    def within(self, bound: float) -> int:
        """The cost of the dearest configuration whose known value is at most `bound`, to the last digit."""
        if not self.cheapest <= bound <= self.dearest:
            few = "no configuration is within it" if bound < self.cheapest else "every configuration is within it"
            raise BudgetError(
                f"Got a budget of {self._shown(bound)} of {self.name}; {few}: expected one from "
                f"{self._shown(self.cheapest)}, the smallest, to {self._shown(self.dearest)}, the largest."
            )
        rounding = self.cost(bound + 4 * math.ulp(max(abs(self.cheapest), abs(self.dearest)))) - self.cost(bound)
        most = min(math.floor(self.cost(bound) + rounding), self.knapsack.most)
        while most > self.knapsack.least:
            choice = self.knapsack.at(most)
            cost = self.knapsack.cost(choice)
            if known_values(self.problem, _configuration(self.problem, choice))[self.name] <= bound:
                return cost
            most = cost - 1
        return self.knapsack.least

    def _shown(self, value: float) -> str:
        units = {c.name: c.unit for c in self.problem.constraints} | {o.name: o.unit for o in self.problem.objectives}
        return f"{value!r} {units.get(self.name, '')}".strip()


def checked(budgets: Mapping[str, object]) -> dict[str, list[float]]:
    """Bounds by name as they are kept: lists of floats, rising, equal ones once; a single number is a list of one.

    Raises:
        BudgetError: a bound is no finite number, or there is none.
    """
    found: dict[str, list[float]] = {}
    for name, given in budgets.items():
        several = _listed(given)
        if not several or not all(is_finite(bound) and not isinstance(bound, bool) for bound in several):
            raise BudgetError(f"The budgets of {name!r} are {given!r}; expected numbers, such as [3.0, 4.0].")
        found[str(name)] = sorted({float(bound) for bound in several})
    if not found:
        raise BudgetError("The budgets are empty; expected bounds by the name of a known objective, such as size_mb.")
    return found


def _listed(given: Any) -> list[Any]:
    """What is in a list, an array or the like; anything else alone."""
    try:
        return [given] if isinstance(given, str) else list(given)
    except TypeError:
        return [given]


def _price(problem: Problem, name: str) -> Price:
    """The price of a known value, compared with the costs of several configurations."""
    assert isinstance(problem, HasCosts)
    costs = problem.costs()
    dearest = Knapsack(-costs, costs)
    ends = [_configuration(problem, dearest.at(cost)) for cost in (dearest.least, dearest.most)]
    samples = [*ends, *_some(problem)]
    values = [known_values(problem, config) for config in samples]
    paid = [dearest.cost(_choice(problem, config)) for config in samples]

    def priced(known: str) -> Price | None:
        cheapest, most = values[0][known], values[1][known]
        if not cheapest < most:
            return None
        price = Price(problem, known, cheapest, most, dearest)
        near = (abs(price.cost(each[known]) - cost) < APART for each, cost in zip(values, paid, strict=True))
        return price if all(near) else None

    prices = {known: price for known in values[0] if (price := priced(known)) is not None}
    if name not in prices:
        why = "is not decided by the costs" if name in values[0] else "is no known objective"
        able = f"expected one that the costs decide: {', '.join(prices)}" if prices else "the costs decide none"
        raise BudgetError(f"Got budgets of {name!r}, which {why} of {type(problem).__name__}; {able}.")
    return prices[name]


def _some(problem: Problem) -> list[Config]:
    """The baselines and some random configurations: always the same."""
    rng = np.random.default_rng(0)
    drawn = [problem.space.sample(rng) for _ in range(DRAWN)]
    if isinstance(problem, HasRepair):
        drawn = [problem.repair(config, rng) for config in drawn]
    return [*problem.baselines().values(), *drawn]


def _choice(problem: Problem, config: Config) -> IntArray:
    return (problem.space.encode(config) - problem.space.lower).astype(np.int64)


def _configuration(problem: Problem, choice: IntArray) -> Config:
    return problem.space.decode(choice + problem.space.lower)
