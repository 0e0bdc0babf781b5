"""NSGA-II: pymoo's operators, our loop, so that it replays, runs asynchronously and respects ordered levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import cross_sbx
from pymoo.operators.mutation.pm import mut_pm
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from moopt.algorithms.base import Algorithm, positive
from moopt.jobs import Job
from moopt.problem import HasMoves, Problem
from moopt.space import Choice, Config, Ordinal, Space

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ETA_CROSSOVER, ETA_MUTATION, MATING, MUTATED = 15.0, 20.0, 0.9, 0.9
"""Distribution indices and probabilities of pymoo's NSGA-II (Deb et al. 2002)."""

MOVED = 0.5
"""The share of offspring that the problem's own moves vary instead of polynomial mutation."""


class _Generation(NamedTuple):
    """Offspring by their key, and the archive's indices of the population they come from."""

    offspring: dict[tuple[Any, ...], Config]
    parents: list[int]


class NSGA2(Algorithm):
    """The elitist genetic algorithm of Deb et al. (2002).

    A generation is counted from issued trials: its offspring are a function of the seed and of what was told when its
    first trial is asked for, so that workers never wait. The first population is spread over the levels of the ordinal
    variables if an objective is known; the trials a study opens with belong to it.

    Args:
        population_size: Trials in a generation.
    """

    def __init__(self, population_size: int = 50) -> None:
        self.population_size = positive("population_size", population_size)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._queue: dict[tuple[Any, ...], Config] = {}
        self._parents: list[int] = []
        self._ranked = 0
        self._bred = False
        self._plan: tuple[tuple[int, int], _Generation] | None = None
        self._variation = _Variation(problem)

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
        space, first = self.problem.space, self.population_size - self.next_trial
        candidates = [*self._parents, *range(self._ranked, len(self.archive))]
        if (not self._bred and first > 0) or len(candidates) < 2:
            size = first if first > 0 else self.population_size
            configs = self.unseen(_spread(self.problem, size, rng), size, rng)
            return _Generation({space.key(c): c for c in configs}, candidates)
        population = self._survivors(candidates, rng)
        draws = self._variation.draws(population, self.population_size, rng)
        configs = self.unseen(draws, self.population_size, rng)
        return _Generation({space.key(c): c for c in configs}, population.get("index").tolist())

    def _survivors(self, candidates: list[int], rng: np.random.Generator) -> Any:
        """The best of the archive's `candidates`, feasible ones first, with their ranks and crowding distances."""
        archive = self.archive
        population = Population.new(
            X=np.array([self.problem.space.encode(archive.jobs[i].config) for i in candidates]),
            F=np.array([archive.values[i] for i in candidates]),
            G=np.array([[archive.violations[i]] for i in candidates]),
            index=np.array(candidates),
            rank=np.full(len(candidates), len(candidates)),
            crowding=np.zeros(len(candidates)),
        )
        return RankAndCrowding().do(
            self._variation.described, population, n_survive=self.population_size, random_state=rng
        )


class _Variation:
    """Offspring of a population.

    Numbers and levels: simulated binary crossover and polynomial mutation, on the index for levels, where a mutation
    moves by one level at least. Choices: uniform crossover and resampling.
    """

    def __init__(self, problem: Problem) -> None:
        self._space: Space = problem.space
        self._moves = problem.moves if isinstance(problem, HasMoves) else None
        self._choice: BoolArray = np.array([isinstance(v, Choice) for v in self._space.values()])
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self.described = PymooProblem(
            n_var=len(self._space), n_obj=len(problem.objectives), n_ieq_constr=1,
            xl=self._space.lower, xu=self._space.upper,
        )  # fmt: skip

    def draws(self, population: Any, size: int, rng: np.random.Generator) -> Iterator[Config]:
        """Offspring without end, bred `size` at a time."""
        tournament = SimpleNamespace(tournament_type="comp_by_dom_and_crowding", random_state=rng)
        codes: FloatArray = population.get("X")
        while True:
            pairs = self._selection.do(
                self.described, population, (size + 1) // 2, 2, to_pop=False, algorithm=tournament, random_state=rng
            )
            children = self.crossed(codes[pairs.T], rng)
            moved = rng.random(len(children)) < (MOVED if self._moves else 0.0)
            mutated = np.where(moved[:, None], children, self.mutated(children, rng))
            for row, own in zip(mutated, moved, strict=True):
                config = self._space.decode(row)
                yield self._moves(config, rng) if own and self._moves else config

    def crossed(self, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """The children [2n, d] of parents [2, n, d]."""
        pairs = parents.shape[1]
        eta, exchange = np.full((pairs, 1), ETA_CROSSOVER), np.full((pairs, 1), 0.5)
        lower, upper = self._space.lower, self._space.upper
        children = cross_sbx(parents, lower, upper, eta, 0.5, exchange, random_state=rng)
        swapped = rng.random(parents.shape[1:]) < 0.5
        uniform = np.where(swapped, parents[::-1], parents)
        children = np.where(self._choice, uniform, children)
        children = np.where(rng.random((pairs, 1)) < MATING, children, parents)
        return self._levels(children.reshape(-1, parents.shape[2]))

    def mutated(self, rows: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Rows [n, d] after mutation: every variable with the chance 1/d, a level by one level at least."""
        n, d = rows.shape
        space, chance = self._space, np.where(rng.random(n) < MUTATED, min(0.5, 1 / d), 0.0)
        drawn = mut_pm(rows, space.lower, space.upper, np.full(n, ETA_MUTATION), chance, False, random_state=rng)
        found = self._levels(drawn)
        still: BoolArray = space.discrete & (drawn != rows) & (found == rows)
        found = np.where(still, rows + np.sign(drawn - rows), found)
        resampled = self._choice & (rng.random((n, d)) < chance[:, None])
        span = space.upper - space.lower
        shift = np.floor(rng.random((n, d)) * np.maximum(span, 1.0)) + 1.0
        other = space.lower + np.mod(rows - space.lower + shift, span + 1.0)
        return np.where(self._choice, np.where(resampled, other, rows), found)

    def _levels(self, rows: FloatArray) -> FloatArray:
        return np.where(self._space.discrete, np.floor(rows + 0.5), rows)


def _spread(problem: Problem, size: int, rng: np.random.Generator) -> Iterator[Config]:
    """Candidates without end. With a known objective the levels of each lie near one share of their range.

    So the first `size` of them cover what is known, such as bytes, from the lowest levels to the highest; drawn
    uniformly they would all lie near the middle.
    """
    space = problem.space
    if not any(objective.known for objective in problem.objectives):
        while True:
            yield space.sample(rng)
    ordinal = np.array([isinstance(v, Ordinal) for v in space.values()])
    top = np.where(ordinal, space.upper, 0).astype(np.int64)
    shares = rng.permutation(np.linspace(0.0, 1.0, size))
    while True:
        for share in shares:
            near = rng.binomial(top, share)
            yield space.decode(np.where(ordinal, near, space.encode(space.sample(rng))))
