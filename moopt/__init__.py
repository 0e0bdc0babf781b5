"""moopt: the Pareto front of compressed models. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Choice": "space",
    "Config": "space",
    "Constraint": "problem",
    "Evaluation": "problem",
    "Fidelity": "problem",
    "Float": "space",
    "History": "history",
    "Integer": "space",
    "Objective": "problem",
    "Ordinal": "space",
    "Preference": "preference",
    "Problem": "problem",
    "Resources": "problem",
    "Simplex": "space",
    "Space": "space",
    "Study": "study",
    "Trial": "history",
    "load": "backend.loading",
    "load_history": "study",
    "optuna_sampler": "samplers",
    "packed_cache": "backend.kv",
}

__all__ = ["__version__", "algorithms", "errors", *_HOMES]

if TYPE_CHECKING:
    from moopt import algorithms as algorithms
    from moopt import errors as errors
    from moopt.backend.kv import packed_cache as packed_cache
    from moopt.backend.loading import load as load
    from moopt.history import History as History
    from moopt.history import Trial as Trial
    from moopt.preference import Preference as Preference
    from moopt.problem import Constraint as Constraint
    from moopt.problem import Evaluation as Evaluation
    from moopt.problem import Fidelity as Fidelity
    from moopt.problem import Objective as Objective
    from moopt.problem import Problem as Problem
    from moopt.problem import Resources as Resources
    from moopt.samplers import optuna_sampler as optuna_sampler
    from moopt.space import Choice as Choice
    from moopt.space import Config as Config
    from moopt.space import Float as Float
    from moopt.space import Integer as Integer
    from moopt.space import Ordinal as Ordinal
    from moopt.space import Simplex as Simplex
    from moopt.space import Space as Space
    from moopt.study import Study as Study
    from moopt.study import load_history as load_history


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"moopt.{_HOMES[name]}"), name)
    if name in ("algorithms", "errors"):
        return import_module(f"moopt.{name}")
    raise AttributeError(f"module 'moopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
