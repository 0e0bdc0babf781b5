"""What the genetic algorithms share: generations counted from issued trials, so that workers never wait."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moopt.algorithms.base import Algorithm, positive
from moopt.algorithms.variation import Variation, spread, tournaments
from moopt.jobs import Job
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Survivors(NamedTuple):
    """Who may have offspring.

    Attributes:
        places: Numbers in the archive, [p].
        fitness: What tournaments compare, [p, k]: the first column decides, less is better, then the next.
    """

    places: IntArray
    fitness: FloatArray


class _Generation(NamedTuple):
    """Offspring by their key, and the archive's indices of the population they come from."""

    offspring: dict[tuple[Any, ...], Config]
    parents: list[int]


class Genetic(Algorithm):
    """An elitist genetic algorithm; how it selects is up to the subclass.

    A generation is counted from issued trials: its offspring are a function of the seed and of what was told when its
    first trial is asked for. The first population is spread over the levels of the ordinal variables if an objective is
    known; the trials a study opens with belong to it. There, if all is discrete, mates are near each other in what is
    known: of two that differ much, the children's levels have what neither was selected for (as Ishibuchi and Shibata
    found of knapsacks in 2003). Numbers that are crossed would hardly move so.

    Args:
        population_size: Trials in a generation.
    """

    def __init__(self, population_size: int) -> None:
        self.population_size = positive("population_size", population_size)

    @abstractmethod
    def survivors(self, candidates: IntArray, rng: np.random.Generator) -> Survivors:
        """The best `population_size` of the archive's `candidates` [n], feasible ones first."""

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._queue: dict[tuple[Any, ...], Config] = {}
        self._parents: list[int] = []
        self._ranked = 0
        self._bred = False
        self._plan: tuple[tuple[int, int], _Generation] | None = None
        self._variation = Variation(problem)
        known = [place for place, objective in enumerate(problem.objectives) if objective.known]
        self._sorted_by = known[0] if known and problem.space.discrete.all() else None

    def ask(self, n: int) -> list[Job]:
        queue = self._queue or self._generation().offspring
        return self.jobs(islice(queue.values(), n))

    def issued(self, jobs: Sequence[Job]) -> None:
        if not self._queue and any(job.kind == "evaluate" and job.label is None for job in jobs):
            generation = self._generation()
            self._queue, self._parents, self._ranked = dict(generation.offspring), generation.parents, len(self.archive)
            self._bred, self._plan = True, None
        super().issued(jobs)
        for job in jobs:
            if job.kind == "evaluate":
                self._leave(job)

    def _leave(self, job: Job) -> None:
        """An issued trial leaves the generation; one that was not planned takes the place of another in it."""
        if self._queue.pop(self.problem.space.key(job.config), None) is None and job.label is None:
            self._queue.pop(next(iter(self._queue), ()), None)

    def _generation(self) -> _Generation:
        """The next generation, from the state as it is; remembered until that changes."""
        state = (self.next_trial, len(self.archive))
        if self._plan is None or self._plan[0] != state:
            self._plan = (state, self._next_generation(self.rng()))
        return self._plan[1]

    def _next_generation(self, rng: np.random.Generator) -> _Generation:
        first = self.population_size - self.next_trial
        candidates = [*self._parents, *range(self._ranked, len(self.archive))]
        if (not self._bred and first > 0) or len(candidates) < 2:
            size = first if first > 0 else self.population_size
            return self._offspring(spread(self.problem, size, rng), size, candidates, rng)
        survivors = self.survivors(np.array(candidates), rng)
        return self._offspring(self._bred_of(survivors, rng), self.population_size, survivors.places.tolist(), rng)

    def _offspring(
        self, draws: Iterator[Config], size: int, parents: list[int], rng: np.random.Generator
    ) -> _Generation:
        return _Generation({self.problem.space.key(c): c for c in self.unseen(draws, size, rng)}, parents)

    def _bred_of(self, survivors: Survivors, rng: np.random.Generator) -> Iterator[Config]:
        """Offspring without end, a population at a time."""
        codes = np.array([self.archive.codes[i] for i in survivors.places])
        order = np.unique(survivors.fitness, axis=0, return_inverse=True)[1].reshape(-1)
        pairs = (self.population_size + 1) // 2
        while True:
            parents = self._paired(tournaments(order, 2 * pairs, rng), survivors.places, rng)
            yield from self._variation.configs(self._variation.crossed(codes[parents], rng), rng)

    def _paired(self, winners: IntArray, places: IntArray, rng: np.random.Generator) -> IntArray:
        """Mates [2, n], from as many as 2n winners of `places`."""
        if self._sorted_by is None:
            return winners.reshape(2, -1)
        amounts = [self.archive.values[place][self._sorted_by] for place in places[winners]]
        return rng.permutation(winners[np.argsort(amounts, kind="stable")].reshape(-1, 2)).T
