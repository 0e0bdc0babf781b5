"""Chebyshev annealing (MOCHA): one move at a time from the archive's best for a random preference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.algorithms.base import Algorithm, positive, share
from moopt.algorithms.variation import Variation, spread
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What a gate judges: a candidate that was just measured. Objectives are scaled to [0, 1] and minimised.

    Attributes:
        candidate: Its objectives, [m].
        parent: Those of what it was made from, [m].
        accepted: Those of everything accepted so far, [n, m].
        weights: The preference its parent was chosen for, [m].
    """

    candidate: FloatArray
    parent: FloatArray
    accepted: FloatArray
    weights: FloatArray


class Gate(Protocol):
    """Whether a candidate may have offspring. A dataclass, whose fields are part of a study's identity."""

    def __call__(self, step: Step) -> bool:
        """Accept the step's candidate."""


class Schedule(Protocol):
    """The chance of the exploring gate. A dataclass, whose fields are part of a study's identity."""

    def __call__(self, spent: float) -> float:
        """The chance when this share of the budget is spent."""


@dataclass(frozen=True)
class Contribution:
    """Accepts what adds hypervolume: what nothing accepted is as good as in every objective."""

    def __call__(self, step: Step) -> bool:
        return not (step.accepted <= step.candidate).all(axis=1).any()


@dataclass(frozen=True)
class Improvement:
    """Accepts what is better than its parent for the preference the parent was chosen for.

    Attributes:
        rho: The weight of the sum in the augmented Chebyshev value.
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        share("rho", self.rho)

    def __call__(self, step: Step) -> bool:
        both = np.array([step.candidate, step.parent])
        candidate, parent = pareto.chebyshev(both, step.weights, self.rho)
        return bool(candidate < parent)


@dataclass(frozen=True)
class Decay:
    """exp(-kappa b): with kappa = 2 ln 2 the two gates are as likely half way.

    Attributes:
        kappa: How fast the chance of exploring falls.
    """

    kappa: float = 2 * math.log(2)

    def __post_init__(self) -> None:
        share("kappa", self.kappa)

    def __call__(self, spent: float) -> float:
        return math.exp(-self.kappa * spent)


@dataclass(frozen=True)
class Constant:
    """The same chance throughout: 1 explores always, 0 never.

    Attributes:
        chance: The chance.
    """

    chance: float

    def __post_init__(self) -> None:
        if share("chance", self.chance) > 1:
            raise AlgorithmError(f"chance is {self.chance!r}; expected a number from 0 to 1.")

    def __call__(self, spent: float) -> float:
        return self.chance


class ChebyshevAnnealing(Algorithm):
    """Moves from the candidate that is best for a preference, drawn anew for every trial (after MOCHA).

    The preference is Dirichlet(1) distributed, the parent has the least augmented Chebyshev value among what was
    accepted. Half of the candidates are moves of the parent, half of its crossing with another accepted one. A
    candidate is accepted by one of two gates: the exploring one early, the exploiting one late. What is infeasible is
    never accepted, and a parent only while nothing feasible is known. Where a user prefers a region, what lies outside
    has no part in offspring.

    Args:
        trials: The budget the schedule is made for; a study may end before or go on after it.
        opening: Trials before the first move, the baselines a study opens with counted.
        explore: The gate that asks for diversity.
        exploit: The gate that asks for progress.
        schedule: The chance of the exploring gate over the share of the budget that was issued.
        rho: The weight of the sum in the augmented Chebyshev value that chooses parents.

    Raises:
        AlgorithmError: a number makes no sense, or a gate or a schedule is no dataclass, so that a stored study could
            not tell it from another.
    """

    def __init__(
        self,
        trials: int = 1000,
        opening: int = 30,
        explore: Gate = Contribution(),
        exploit: Gate = Improvement(),
        schedule: Schedule = Decay(),
        rho: float = 0.05,
    ) -> None:
        self.trials, self.opening = positive("trials", trials), positive("opening", opening)
        self.rho = share("rho", rho)
        self.explore, self.exploit, self.schedule = explore, exploit, schedule
        for name, part in self._parts().items():
            if not is_dataclass(part) or isinstance(part, type):
                raise AlgorithmError(f"{name} is {part!r}; expected an object of a dataclass, such as Contribution().")

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._variation = Variation(problem)
        self._accepted: list[int] = []
        self._places: dict[int, int] = {}
        self._range = np.array([[np.inf], [-np.inf]]) * np.ones(len(problem.objectives))

    def ask(self, n: int) -> list[Job]:
        rng, found, notes = self.rng(), list[Config](), list[dict[str, Any]]()
        for issued in range(self.next_trial, self.next_trial + n):
            draws, note = self._opened(rng) if self._opens(issued) else self._moved(issued, rng)
            new = self.unseen(draws, 1, rng, besides=found)
            found += new
            notes.append(note)
            if not new:
                break
        return [Job(**{**vars(job), "note": note}) for job, note in zip(self.jobs(found), notes, strict=False)]

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            if job.kind == "evaluate" and not isinstance(outcome, Failure):
                self._places[job.trial] = place = len(self.archive) - 1
                if self.archive.broken[place] <= 0:
                    values = self.archive.points[place]
                    self._range = np.array([np.minimum(self._range[0], values), np.maximum(self._range[1], values)])
                    if self._passes(place, job):
                        self._accepted.append(place)

    def settings(self) -> dict[str, Any]:
        described = {name: {"kind": type(part).__name__, **asdict(part)} for name, part in self._parts().items()}
        return {**super().settings(), **described}

    def _parts(self) -> dict[str, Any]:
        return {"explore": self.explore, "exploit": self.exploit, "schedule": self.schedule}

    def _opens(self, issued: int) -> bool:
        return issued < self.opening or len(self.archive) == 0

    def _opened(self, rng: np.random.Generator) -> tuple[Iterator[Config], dict[str, Any]]:
        return spread(self.problem, self.opening, rng), {}

    def _moved(self, issued: int, rng: np.random.Generator) -> tuple[Iterator[Config], dict[str, Any]]:
        """Candidates from the parent for a preference, and what the gate is to know of it."""
        weights = rng.dirichlet(np.ones(len(self.problem.objectives)))
        explores = bool(rng.random() < self.schedule(issued / self.trials))
        parent = self._parent(weights)
        note = {"weights": weights.tolist(), "explores": explores, "parent": self.archive.jobs[parent].trial}
        return self._offspring(parent, rng), note

    def _offspring(self, parent: int, rng: np.random.Generator) -> Iterator[Config]:
        """Moves without end: of the parent itself, and of its crossing with another accepted candidate, in turn."""
        codes, mates = self.archive.codes, self._preferred() or [parent]
        while True:
            mate = mates[int(rng.integers(len(mates)))]
            child = self._variation.crossed(np.array([[codes[parent]], [codes[mate]]]), rng)[0]
            yield from self._variation.configs(np.array([codes[parent], child])[rng.permutation(2)], rng)

    def _parent(self, weights: FloatArray) -> int:
        """The archive's number of the best for a preference [m], or of the least infeasible."""
        accepted = self._preferred()
        if not accepted:
            return int(np.argmin(self.archive.violations))
        return accepted[int(np.argmin(pareto.chebyshev(self._scaled(accepted), weights, self.rho)))]

    def _preferred(self) -> list[int]:
        """The archive's numbers of what was accepted and is in the region, or nearest to it."""
        return self.archive.least_violating(self._accepted)

    def _passes(self, place: int, job: Job) -> bool:
        """Whether the gate accepts; what was not moved here, such as a baseline, meets the exploring one."""
        made_of = self._places[job.note["parent"]] if "parent" in job.note else place
        if not self._accepted or self.archive.broken[made_of] > 0:
            return True
        candidate, parent = self._scaled([place, made_of])
        weights = np.array(job.note.get("weights", np.ones(len(candidate)) / len(candidate)))
        gate = self.explore if job.note.get("explores", True) else self.exploit
        return gate(Step(candidate, parent, self._scaled(self._accepted), weights))

    def _scaled(self, places: Sequence[int]) -> FloatArray:
        """Objectives [n, m] of the archive's entries, on the scale of everything feasible."""
        return pareto.scaled([self.archive.points[place] for place in places], self._range)
