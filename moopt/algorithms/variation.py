"""Offspring of encoded parents: pymoo's crossover and mutation, made fit for levels and choices. Selects nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from pymoo.operators.crossover.sbx import cross_sbx
from pymoo.operators.mutation.pm import mut_pm

from moopt.problem import HasMoves, Problem
from moopt.space import Choice, Config, Ordinal

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ETA_MUTATION, MUTATED = 20.0, 0.9
"""Distribution index and probability of mutation in pymoo's genetic algorithms (Deb et al. 2002)."""

MOVED = 0.5
"""The share of offspring that the problem's own moves vary instead of polynomial mutation."""


class Variation:
    """What turns parents into candidates, rows [n, d] of codes throughout.

    Numbers and levels: simulated binary crossover and polynomial mutation, on the index for levels, where a mutation
    moves by one level at least. Choices: uniform crossover and resampling. A problem with `moves` makes half of the
    variations itself.

    Args:
        problem: Whose space, and whose moves.
        eta: The distribution index of crossover: the greater, the nearer children are to their parents.
        mating: The share of pairs that is crossed at all.
    """

    def __init__(self, problem: Problem, eta: float = 15.0, mating: float = 0.9) -> None:
        self._space, self._eta, self._mating = problem.space, eta, mating
        self._moves = problem.moves if isinstance(problem, HasMoves) else None
        self._choice: BoolArray = np.array([isinstance(v, Choice) for v in self._space.values()])

    def configs(self, rows: FloatArray, rng: np.random.Generator) -> Iterator[Config]:
        """A variation of each row [n, d]: a move of the problem's, or a mutation."""
        moved = rng.random(len(rows)) < (MOVED if self._moves else 0.0)
        mutated = np.where(moved[:, None], rows, self.mutated(rows, rng))
        for config, own in zip(self._space.decode_all(mutated), moved, strict=True):
            yield self._moves(config, rng) if own and self._moves else config

    def crossed(self, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """The children [2n, d] of parents [2, n, d]."""
        pairs = parents.shape[1]
        eta, exchange = np.full((pairs, 1), self._eta), np.full((pairs, 1), 0.5)
        lower, upper = self._space.lower, self._space.upper
        children = cross_sbx(parents, lower, upper, eta, 0.5, exchange, random_state=rng)
        swapped = rng.random(parents.shape[1:]) < 0.5
        uniform = np.where(swapped, parents[::-1], parents)
        children = np.where(self._choice, uniform, children)
        children = np.where(rng.random((pairs, 1)) < self._mating, children, parents)
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


def tournaments(places: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """The winners [n] of n pairs of individuals with the given places [p], the least place wins; equal ones by chance.

    Everybody takes part about equally often.
    """
    order = np.concatenate([rng.permutation(len(places)) for _ in range(-(-2 * n // len(places)))])
    first, second = order[: 2 * n].reshape(n, 2).T
    behind = places[second] < places[first]
    tied = (places[second] == places[first]) & (rng.random(n) < 0.5)
    return np.where(behind | tied, second, first)


def spread(problem: Problem, size: int, rng: np.random.Generator) -> Iterator[Config]:
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
