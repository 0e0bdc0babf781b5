"""The contract of an algorithm, and the bookkeeping every algorithm shares. One algorithm a file beside this one."""

from __future__ import annotations

import inspect
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.errors import AlgorithmError, ProblemError
from moopt.jobs import SIZING, Failure, Job, Outcome
from moopt.problem import Evaluation, HasRepair, Problem, counted, is_finite, known_values
from moopt.region import Region
from moopt.space import Config, Space

FloatArray = npt.NDArray[np.float64]

SMALL = 1e6
"""Up to this many configurations a discrete space is searched for what is left of it."""

ATTEMPTS, PERSISTENCE, MORE = 200, 5000, 20
"""Draws at most: for each new candidate in a small space; for all in a large one, and so many more for each.

Known bounds may leave little of a space, and a draw takes about a tenth of a millisecond.
"""


class Archive:
    """What has been found: every completed trial, in the order it was told."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.jobs: list[Job] = []
        self.values: list[FloatArray] = []
        """Objectives, signs turned to be minimised, [m] each."""
        self.points: list[FloatArray] = []
        """The same on the scales of the objectives, [m] each: for distances, not for which is better."""
        self.variances: list[FloatArray] = []
        """The variances of their errors, [m] each; NaN where none was measured, 0 for what is known."""
        self.samples: list[Mapping[str, Sequence[float]]] = []
        """What they are the means of, by objective, where that was measured."""
        self.excess: list[FloatArray] = []
        """By how much each constraint is exceeded, [c]."""
        self.codes: list[FloatArray] = []
        """The encoded configurations, [d] each."""
        self.broken: list[float] = []
        """The sum of what the constraints are exceeded by; 0 is feasible."""
        self.region: Region | None = None
        """What the search is to stay near; None: nothing."""
        self._front: tuple[int, FloatArray] = (-1, np.zeros((0, 0)))
        self._violations: list[float] = []

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, job: Job, evaluation: Evaluation) -> None:
        values = {**known_values(self._problem, job.config), **evaluation.values}
        self.jobs.append(job)
        self.codes.append(self._problem.space.encode(job.config))
        self.values.append(np.array([values[o.name] * o.sign for o in self._problem.objectives]))
        self.points.append(counted(self.values[-1], self._problem.objectives))
        given = evaluation.variances or {}
        self.variances.append(
            np.array([0.0 if o.known else given.get(o.name, np.nan) for o in self._problem.objectives])
        )
        self.samples.append(evaluation.samples or {})
        self.excess.append(np.array([c.excess(values[c.name]) for c in self._problem.constraints]))
        self.broken.append(float(np.maximum(self.excess[-1], 0.0).sum()))

    @property
    def violations(self) -> list[float]:
        """What speaks against each; 0 is nothing.

        For what is feasible, how far outside the region it now lies; behind that, what the constraints are exceeded by.
        """
        if self.region is None:
            return self.broken
        if len(self._violations) != len(self):
            broken, outside = np.array(self.broken), self.outside(np.array(self.values))
            behind = broken + outside[broken <= 0].max(initial=0.0)
            self._violations = np.where(broken <= 0, outside, behind).tolist()
        return self._violations

    def outside(self, values: FloatArray) -> FloatArray:
        """By how much values [..., m] lie outside the region as it now is, [...]; 0 where there is none."""
        if self.region is None or not self.broken or min(self.broken) > 0:
            return np.zeros(values.shape[:-1])
        if self._front[0] != len(self):
            feasible = np.array(self.broken) <= 0
            best = pareto.nondominated(np.array(self.values)[feasible])
            self._front = len(self), np.array(self.points)[feasible][best]
        return self.region.excess(counted(values, self._problem.objectives), self._front[1])

    def least_violating(self, places: Sequence[int]) -> list[int]:
        """Those numbers of trials that the least speaks against: where there are such, all that nothing does."""
        violations = self.violations
        least = min((violations[place] for place in places), default=0.0)
        return [place for place in places if violations[place] <= least]


class Algorithm(ABC):
    """Proposes candidates from what it was told.

    `ask` is pure: its random generator comes from the study's seed and the number of the first trial asked for.
    State changes only in `issued` and `tell`, so that replaying a stored log of both rebuilds it exactly.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    """The optional methods of a problem (see `moopt.problem.CAPABILITIES`) it cannot do without."""

    screens: ClassVar[bool] = False
    """Whether it screens candidates by itself."""

    problem: Problem
    seed: int
    archive: Archive
    next_trial: int

    def start(self, problem: Problem, seed: int) -> None:
        """Begin on a problem; forgets everything told before."""
        self.problem, self.seed = problem, seed
        self.archive = Archive(problem)
        self.next_trial = 0
        self._seen: set[tuple[Any, ...]] = set()

    @abstractmethod
    def ask(self, n: int) -> list[Job]:
        """At most n jobs to do next. None: the space is exhausted, or it waits for what is pending."""

    def issued(self, jobs: Sequence[Job]) -> None:
        """These jobs were dispatched."""
        for job in jobs:
            if job.kind in SIZING:
                self.next_trial = max(self.next_trial, job.trial + 1)
                self._seen.add(self.problem.space.key(job.config))

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        """This came of them."""
        for job, outcome in outcomes:
            if job.kind == "evaluate" and not isinstance(outcome, Failure):
                self.archive.add(job, outcome)

    def believed(self) -> FloatArray | None:
        """What the archive's trials are without their noise, [n, m], signs turned; None: what was measured."""
        return None

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        """About what else so many trials will take: by kind of job, how many and the tokens of each."""
        return {}

    def settings(self) -> dict[str, Any]:
        """A JSON description, equal for algorithms that do the same: part of a study's identity."""
        arguments = inspect.signature(type(self)).parameters
        public = {name: value for name, value in vars(self).items() if name in arguments}
        return {"algorithm": type(self).__name__, **public}

    def rng(self) -> np.random.Generator:
        """The generator of the next ask."""
        return np.random.default_rng([self.seed, self.next_trial])

    def seen(self, config: Config) -> bool:
        """Whether the candidate was issued before."""
        return self.problem.space.key(config) in self._seen

    def jobs(self, configs: Iterable[Config]) -> list[Job]:
        """Evaluations of new candidates, numbered from the next trial on."""
        fidelity = self.problem.fidelity
        return [Job(self.next_trial + i, config, fidelity=fidelity) for i, config in enumerate(configs)]

    def unseen(
        self, draws: Iterator[Config], n: int, rng: np.random.Generator, besides: Iterable[Config] = ()
    ) -> list[Config]:
        """The first n different candidates of `draws` that were not issued and break no known constraint.

        Nor are they among `besides`, what the same ask has found already.

        What is drawn is repaired where the problem can. When the draws keep repeating, what is left of a small
        discrete space is searched from a random start, so that fewer than n means that nothing is left; in a large
        space it means that so many draws found no more.
        """
        space, found = self.problem.space, dict[tuple[Any, ...], Config]()
        taken = {space.key(config) for config in besides}
        small = space.size <= SMALL
        n = min(n, int(space.size) - len(self._seen)) if small else n
        if n > 0:
            drawn = islice(draws, n * ATTEMPTS if small else PERSISTENCE + n * MORE)
            left = _all(self.problem, rng) if small else iter(())
            for config in map(self.repairing(rng), chain(drawn, left)):
                key = space.key(config)
                if key not in self._seen and key not in found and key not in taken and self.within_known_bounds(config):
                    found[key] = config
                if len(found) == n:
                    break
        return list(found.values())

    def repairing(self, rng: np.random.Generator) -> Callable[[Config], Config]:
        """What makes the problem's repaired configuration of one; the same where it repairs none."""
        problem = self.problem
        return (lambda config: problem.repair(config, rng)) if isinstance(problem, HasRepair) else lambda config: config

    def within_known_bounds(self, config: Config) -> bool:
        """Whether every constraint whose value is known holds: what violates one is never dispatched.

        A candidate whose known values are none is: it fails with the reason.
        """
        if not self.problem.constraints:
            return True
        try:
            known = known_values(self.problem, config)
        except ProblemError:
            return True
        return all(c.excess(known[c.name]) <= 0 for c in self.problem.constraints if c.name in known)


def spent(space: Space) -> str:
    """Why there is no new candidate, in words."""
    if space.size <= SMALL:
        return "the space, or what the known constraints leave of it, is exhausted"
    return f"{PERSISTENCE + MORE:,} draws found none that keeps the known constraints"


def _all(problem: Problem, rng: np.random.Generator) -> Iterator[Config]:
    """Every configuration of a discrete space, from a random start."""
    size = int(problem.space.size)
    start = int(rng.integers(size))
    for i in range(size):
        yield _configuration(problem, (start + i) % size)


def _configuration(problem: Problem, index: int) -> Config:
    """The configuration with the given number in a discrete space."""
    config: Config = {}
    for name, variable in problem.space.items():
        index, digit = divmod(index, int(variable.upper - variable.lower) + 1)
        config[name] = variable.decode(variable.lower + digit)
    return config


def positive(name: str, value: Any) -> int:
    """`value`, if it is a whole number above 0, Python's or numpy's."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise AlgorithmError(f"{name} is {value!r}; expected a whole number above 0.")
    return number


def rungs_of(value: Any) -> list[int]:
    """`value`, if it is a list of whole numbers above 0, each larger than the one before."""
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    found = [positive("a rung", tokens) for tokens in value] if listed else []
    if not listed or sorted(set(found)) != found:
        raise AlgorithmError(f"rungs is {value!r}; expected ever more tokens, such as (512, 2048).")
    return found


def share(name: str, value: Any) -> float:
    """`value`, if it is a finite number from 0."""
    if isinstance(value, bool) or not is_finite(value) or float(value) < 0:
        raise AlgorithmError(f"{name} is {value!r}; expected a finite number from 0.")
    return float(value)


def switch(name: str, value: Any) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, (bool, np.bool)):
        raise AlgorithmError(f"{name} is {value!r}; expected True or False.")
    return bool(value)
