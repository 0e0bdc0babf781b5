"""What a benchmark drives: our algorithms and the loops of others behind one pair of methods, by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from moopt import algorithms
from moopt.algorithms import Algorithm
from moopt.algorithms.opening import Opening
from moopt.errors import AlgorithmError, CapabilityError
from moopt.jobs import Job, Outcome
from moopt.problem import Problem, capabilities

FloatArray = npt.NDArray[np.float64]

PEERS: Mapping[str, tuple[str, str, str]] = {
    "amq": ("amq_loop", "AMQLoop", "amq"),
    "botorch-qlognehvi": ("botorch_loop", "BotorchLoop", "qlognehvi"),
    "optuna-gp": ("optuna_loop", "OptunaLoop", "gp"),
    "optuna-nsga2": ("optuna_loop", "OptunaLoop", "nsga2"),
    "optuna-tpe": ("optuna_loop", "OptunaLoop", "tpe"),
    "pymoo-nsga2": ("pymoo_loop", "PymooLoop", "nsga2"),
    "pymoo-nsga3": ("pymoo_loop", "PymooLoop", "nsga3"),
}
"""The loops of others: the module in `moopt.bench.peers`, the class, and what it is to run."""

AUTO = "auto"
"""Whatever `moopt.algorithms.suggest` names for the problem."""


class Searcher(Protocol):
    """A search under way."""

    def ask(self) -> Job | None:
        """The next job; None where nothing is left, or where it waits for what is pending."""

    def tell(self, job: Job, outcome: Outcome) -> None:
        """This came of a job."""

    def believed(self) -> FloatArray | None:
        """What the trials told are without their noise, [n, m], signs turned; None: what was measured."""


class Ours:
    """One of our algorithms, opened with the problem's baselines as every study is."""

    def __init__(self, algorithm: Algorithm, problem: Problem, seed: int) -> None:
        if missing := sorted(algorithm.requires - capabilities(problem)):
            raise CapabilityError(
                f"{type(algorithm).__name__} needs {', '.join(missing)}, which {type(problem).__name__} lacks; "
                "leave it out of this race."
            )
        self._algorithm = Opening(algorithm)
        self._algorithm.start(problem, seed)

    def ask(self) -> Job | None:
        while True:
            jobs = self._algorithm.ask(1)
            self._algorithm.issued(jobs)
            run = [job for job in jobs if job.kind != "prune"]
            if run or not jobs:
                return run[0] if run else None

    def tell(self, job: Job, outcome: Outcome) -> None:
        self._algorithm.tell([(job, outcome)])

    def believed(self) -> FloatArray | None:
        return self._algorithm.algorithm.believed()


def check(name: str) -> None:
    """Refuse a name that there is no search of, before anything runs.

    Raises:
        AlgorithmError: lists what there is.
    """
    if name not in PEERS and name != AUTO:
        algorithm(name)


def taken(name: str, problem: Problem, evaluations: int) -> str:
    """What "auto" takes for a search of so many evaluations; any other name as it is."""
    return algorithms.suggest(problem, evaluations).name if name == AUTO else name


def searcher(name: str, problem: Problem, evaluations: int, seed: int) -> Searcher:
    """The search of that name, at its beginning.

    Args:
        name: One of `PEERS`, "auto", or one of our algorithms, with settings if need be: "nsga2@population_size=20".
        problem: What is searched.
        evaluations: How many evaluations there will be; the peers size their populations and first samples by it.
        seed: The same seed gives the same search.

    Raises:
        AlgorithmError: there is none of that name; lists what there is.
        CapabilityError: it needs something that the problem lacks.
    """
    if name in PEERS:
        module, kind, what = PEERS[name]
        found = getattr(import_module(f"moopt.bench.peers.{module}"), kind)
        return cast(Searcher, found(what, problem, evaluations, seed))
    return Ours(algorithm(taken(name, problem, evaluations)), problem, seed)


def algorithm(name: str) -> Algorithm:
    """One of our algorithms by its name, with settings if need be: "nsga2@population_size=20,other=3"."""
    from moopt import cli_targets

    try:
        return cli_targets.algorithm(name)
    except (AlgorithmError, TypeError) as error:
        raise AlgorithmError(f"{error} Or {AUTO}; the peers are {', '.join(PEERS)}.") from None
