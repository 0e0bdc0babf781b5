"""The algorithms, one file each; `create` finds them by name, plug-ins included (entry point `moopt.algorithms`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from moopt.algorithms.base import Algorithm
from moopt.errors import AlgorithmError
from moopt.problem import HasCosts, Problem, capabilities
from moopt.quadratics import terms

_FILES = {
    "BayesianMAP": "bayesian_map",
    "ChebyshevAnnealing": "chebyshev",
    "EvoPress": "evopress",
    "FrankWolfeMerge": "frank_wolfe",
    "Ladder": "ladder",
    "MAP": "amortized",
    "MAPElites": "map_elites",
    "MMMO": "mmmo",
    "NSGA2": "nsga2",
    "NSGA3": "nsga3",
    "NestedMAP": "nested_map",
    "OptunaSampler": "optuna_sampler",
    "ParEGO": "parego",
    "QNEHVI": "qnehvi",
    "RCO": "rco",
    "Random": "random",
    "SequentialKnapsack": "sequential_knapsack",
    "Sobol": "sobol",
    "SurrogateEvolution": "surrogate_evolution",
}

NAMES = {
    "bayesian-map": "BayesianMAP",
    "chebyshev": "ChebyshevAnnealing",
    "evopress": "EvoPress",
    "frank-wolfe": "FrankWolfeMerge",
    "ladder": "Ladder",
    "map": "MAP",
    "map-elites": "MAPElites",
    "mm-mo": "MMMO",
    "nested-map": "NestedMAP",
    "nsga2": "NSGA2",
    "nsga3": "NSGA3",
    "parego": "ParEGO",
    "qnehvi": "QNEHVI",
    "random": "Random",
    "rco": "RCO",
    "sequential-knapsack": "SequentialKnapsack",
    "sobol": "Sobol",
    "surrogate-evolution": "SurrogateEvolution",
    "tpe": "OptunaSampler",
}
"""The strings that `Study(algorithm=...)` understands."""

MODEL_TRIALS, MODEL_TRIALS_OF_FOUR = 1000, 500
"""Up to so many trials a model of what was measured pays; with four objectives its steps take longer."""

SOME = 200
"""Trials that a run is taken to have at least, where nobody says."""

__all__ = ["NAMES", "Algorithm", "Suggestion", "create", "name_of", "suggest", *_FILES]


def __getattr__(name: str) -> type[Algorithm]:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: type[Algorithm] = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    return found


class Suggestion(NamedTuple):
    """What "auto" takes.

    Attributes:
        name: One of `NAMES`.
        reason: Why, in words.
    """

    name: str
    reason: str


def suggest(problem: Problem, trials: int | None = None, at_budgets: bool = False) -> Suggestion:
    """The algorithm for a problem, and why.

    Args:
        problem: What is to be searched.
        trials: How many trials there will be; None: unknown, taken for some hundreds.
        at_budgets: Whether the best within given budgets is wanted, and not the whole front.
    """
    can, objectives = capabilities(problem), len(problem.objectives)
    if at_budgets:
        able = "gradient" in can
        name = "sequential-knapsack" if able else "evopress"
        return Suggestion(name, f"budgets are given, and the problem has {'' if able else 'no '}gradients")
    if {"costs", "gradient"} <= can and _has_budgets(problem):
        return Suggestion("sequential-knapsack", "every decision is discrete, and the problem has costs and gradients")
    few = trials is not None and trials <= MODEL_TRIALS_OF_FOUR
    if objectives > 4 or (objectives == 4 and not few):
        return Suggestion("nsga3", f"with {objectives} objectives nearly everything is on the front")
    if trials is not None and trials > MODEL_TRIALS:
        return Suggestion("nsga2", f"over {trials} trials its quick steps find more than a model of what was measured")
    if problem.smooth and _few_numbers(problem, SOME if trials is None else trials):
        return Suggestion("map", "what is measured is smooth in a few numbers, of which a quadratic is soon known")
    prior = ", here with the problem's sensitivities for a start" if "sensitivities" in can else ""
    return Suggestion("qnehvi", f"a model of what was measured saves evaluations{prior}")


def _few_numbers(problem: Problem, trials: int) -> bool:
    """Whether all decisions are free numbers, so few that so many trials tell quadratics of them."""
    space = problem.space
    return not space.discrete.any() and not space.simplexes and 2 * terms(len(space)) <= trials


def _has_budgets(problem: Problem) -> bool:
    """Whether one measured objective is to be lowered by discrete decisions at costs between the least and the most."""
    if not problem.space.discrete.all() or sum(not o.known for o in problem.objectives) != 1:
        return False
    assert isinstance(problem, HasCosts)
    costs = problem.costs()
    least = np.where(costs < 0, costs.max(), costs).min(axis=1)
    return int((costs.max(axis=1) - least).sum()) > 1


def name_of(settings: Mapping[str, Any]) -> str | None:
    """The name of the algorithm that has such `Algorithm.settings()`; None if it is none of `NAMES`."""
    return next((name for name, kind in NAMES.items() if kind == settings["algorithm"]), None)


def create(name: str, budgets: Any = None) -> Algorithm:
    """The algorithm of that name with its default settings.

    Args:
        name: One of `NAMES`, or a plug-in's.
        budgets: What it is to find the best candidate within; None: it is not told.

    Raises:
        AlgorithmError: there is none, and what there is; or it takes no budgets.
    """
    kind = _named(name)
    if budgets is None:
        return kind()
    if "budgets" not in signature(kind).parameters:
        raise AlgorithmError(
            f"{name} takes no budgets; expected 'auto', 'sequential-knapsack', 'evopress' or 'rco'. To search a region "
            "with it, give a preference."
        )
    return kind(budgets=budgets)  # type: ignore[call-arg]


def _named(name: str) -> type[Algorithm]:
    if name in NAMES:
        found: type[Algorithm] = __getattr__(NAMES[name])
        return found
    plugins = {point.name: point for point in entry_points(group="moopt.algorithms")}
    if name in plugins:
        loaded: type[Algorithm] = plugins[name].load()
        return loaded
    raise AlgorithmError(f"There is no algorithm {name!r}; expected one of {', '.join(sorted({*NAMES, *plugins}))}.")
