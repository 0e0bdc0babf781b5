"""A race: one problem, so many evaluations, and who searches it over which seeds. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from moopt.errors import StudyError
from moopt.problem import Evaluation, Fidelity, Problem, Resources
from moopt.space import Config


@runtime_checkable
class HasTruth(Protocol):
    """A noisy problem that knows the values without noise."""

    def truth(self, config: Config, fidelity: Fidelity) -> Evaluation:
        """The evaluation without noise."""


@runtime_checkable
class HasNoise(Protocol):
    """A noisy problem whose noise can be drawn anew."""

    def reseeded(self, seed: int) -> Problem:
        """The same problem with other noise."""


@dataclass(frozen=True)
class Race:
    """Searches that are compared.

    Attributes:
        name: What the race is called in folders, tables and plots.
        make: Makes the problem; picklable, so that other processes can: a class, a function or a `functools.partial`.
        evaluations: How many each search may spend.
        algorithms: Names of `moopt.bench.searchers`.
        seeds: The seeds of the searches.
        pending: How many candidates are evaluated at a time; they end in a random order.
    """

    name: str
    make: Callable[[], Problem]
    evaluations: int
    algorithms: Sequence[str]
    seeds: Sequence[int] = range(11)
    pending: int = 1

    def __post_init__(self) -> None:
        if self.evaluations < 4:
            raise StudyError(f"The race {self.name!r} has {self.evaluations} evaluations; expected 4 or more.")

    @cached_property
    def problem(self) -> Problem:
        """The problem as the scores see it, set up."""
        return self.ready(0)

    def ready(self, seed: int) -> Problem:
        """A problem that can be evaluated, on one thread; its noise, where it has any, is of the search's seed."""
        problem = self.make()
        if isinstance(problem, HasNoise):
            problem = problem.reseeded(seed)
        problem.setup(Resources(device="cpu", threads=1))
        return problem

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a stored unit must agree with."""
        problem = self.make()
        optional = {
            "scales": {o.name: o.scale for o in problem.objectives if o.scale != "linear"},
            "constraints": [(c.name, c.bound) for c in problem.constraints],
        }
        found = {
            **problem.fingerprint()["identity"],
            "space": problem.space.describe(),
            "objectives": [(o.name, o.direction, o.known) for o in problem.objectives],
            "evaluations": self.evaluations,
            "pending": self.pending,
            **{key: value for key, value in optional.items() if value},
        }
        return dict(json.loads(json.dumps(found)))
