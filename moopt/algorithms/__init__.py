"""The algorithms, one file each; `create` finds them by name, plug-ins included (entry point `moopt.algorithms`)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from moopt.algorithms.base import Algorithm
from moopt.errors import AlgorithmError
from moopt.problem import Problem, capabilities

_FILES = {
    "ChebyshevAnnealing": "chebyshev",
    "MAPElites": "map_elites",
    "NSGA2": "nsga2",
    "NSGA3": "nsga3",
    "OptunaSampler": "optuna_sampler",
    "ParEGO": "parego",
    "QNEHVI": "qnehvi",
    "Random": "random",
    "SequentialKnapsack": "sequential_knapsack",
    "Sobol": "sobol",
}

NAMES = {
    "chebyshev": "ChebyshevAnnealing",
    "map-elites": "MAPElites",
    "nsga2": "NSGA2",
    "nsga3": "NSGA3",
    "parego": "ParEGO",
    "qnehvi": "QNEHVI",
    "random": "Random",
    "sequential-knapsack": "SequentialKnapsack",
    "sobol": "Sobol",
    "tpe": "OptunaSampler",
}
"""The strings that `Study(algorithm=...)` understands."""

__all__ = ["NAMES", "Algorithm", "create", "suggest", *_FILES]


def __getattr__(name: str) -> type[Algorithm]:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: type[Algorithm] = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    return found


def suggest(problem: Problem) -> str:
    """The name of the algorithm for a problem: sequential knapsacks where it has costs and gradients, else NSGA-II."""
    discrete = all(variable.discrete for variable in problem.space.values())
    return "sequential-knapsack" if discrete and {"costs", "gradient"} <= capabilities(problem) else "nsga2"


def create(name: str) -> Algorithm:
    """The algorithm of that name with its default settings.

    Raises:
        AlgorithmError: there is none; lists what there is.
    """
    if name in NAMES:
        made: type[Algorithm] = __getattr__(NAMES[name])
        return made()
    plugins = {point.name: point for point in entry_points(group="moopt.algorithms")}
    if name in plugins:
        loaded: type[Algorithm] = plugins[name].load()
        return loaded()
    raise AlgorithmError(f"There is no algorithm {name!r}; expected one of {', '.join(sorted({*NAMES, *plugins}))}.")
