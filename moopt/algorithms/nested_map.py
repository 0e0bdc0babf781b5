"""MAP for many models: merges two at a time, so that a quadratic never has more than two variables (Li et al. 2024)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from moopt.algorithms.base import positive
from moopt.algorithms.rounds import Rounds
from moopt.errors import AlgorithmError, SurrogateError
from moopt.problem import Problem
from moopt.quadratics import fit, terms
from moopt.space import Config

logger = logging.getLogger("moopt")

FloatArray = npt.NDArray[np.float64]

GRID = 101
"""Steps of each coefficient where a quadratic of two is searched."""
TRIED = 50
"""Preferences that are drawn before a round gives up finding one that asks for something new."""


@dataclass(frozen=True)
class Node:
    """A merge of two others, or a model by itself.

    Attributes:
        leaves: The models in it, by their place in the space.
        parts: The two that are merged; none for a model.
    """

    leaves: tuple[int, ...]
    parts: tuple[Node, Node] | None = None


class NestedMAP(Rounds):
    """Merges the two models whose own tasks go equally well, then merges of merges, up to one.

    Every merge of two is sampled at a few pairs of coefficients; quadratics of the tasks of its leaves say which pair
    is best for a preference over the tasks, in which a merge counts as all its leaves do. Preferences are equal weights
    first, then drawn at random; models that are merged first share their samples. With N models a preference takes at
    most N + samples * (N - 1) trials, and the next ones, which know the merges of models already, about half of that.

    From arXiv:2406.07529. The space has one number from 0 a model, and the problem one measured objective for each, in
    the same order. Bounds on what is known are kept; other preferences do not steer it.

    Args:
        samples: Pairs of coefficients that a merge of two is tried with.
    """

    def __init__(self, samples: int = 20) -> None:
        self.samples = positive("samples", samples)
        if self.samples < terms(2):
            raise AlgorithmError(f"samples is {samples}; a quadratic of two coefficients needs {terms(2)} or more.")

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        measured = [place for place, objective in enumerate(problem.objectives) if not objective.known]
        space = problem.space
        ends = not space.lower.any() and bool((space.upper == 1).all())
        plain = not space.discrete.any() and not space.simplexes and ends
        if len(measured) != len(space) or not plain:
            raise AlgorithmError(
                f"NestedMAP needs one number from 0 to 1 a model and one measured objective for each, such as "
                f"ModelMerge(method='task_arithmetic') has; got {len(measured)} objectives and {space!r}."
            )
        self._tasks = measured
        self._pairs = qmc.Sobol(2, rng=np.random.default_rng(seed)).random_base2((self.samples - 1).bit_length())
        self._pairs = self._pairs[: self.samples]

    def plan(self, rng: np.random.Generator) -> list[Config]:
        ones = np.eye(len(self.problem.space))
        if found := self._new(ones, rng):
            return found
        if self._pending_of(map(self._stored, ones)):
            return []
        tree = self._tree()
        for weights in self._preferences():
            lacking: list[FloatArray] = []
            best = self._solved(tree, weights, lacking)
            if found := self._new(lacking if best is None else [best], rng):
                return found
            if best is None:  # of something pending
                break
        return []

    def _new(self, points: Iterable[FloatArray], rng: np.random.Generator) -> list[Config]:
        """What of some points of the unit cube was not issued yet."""
        configs = [self.config(point) for point in points]
        return self.unseen(iter(configs), len(configs), rng) if configs else []

    def _preferences(self) -> Iterator[FloatArray]:
        """Weights of the tasks, [d] each: equal ones, then drawn ones, the same each time."""
        rng, d = np.random.default_rng([self.seed, 1]), len(self.problem.space)
        yield np.full(d, 1.0 / d)
        for _ in range(self.next_trial // (self.samples * max(d - 1, 1) // 2 + 1) + TRIED):
            yield rng.dirichlet(np.ones(d))

    def _tree(self) -> Node:
        """The merges, of what goes equally well: neighbours in the order of their own tasks' values."""
        worth = {place: self._value(np.eye(len(self.problem.space))[place], place) for place in range(len(self._tasks))}
        nodes = [Node((place,)) for place in worth]
        while len(nodes) > 1:
            nodes.sort(key=lambda node: float(np.mean([worth[leaf] for leaf in node.leaves])))
            paired = [
                Node((*one.leaves, *other.leaves), (one, other))
                for one, other in zip(nodes[::2], nodes[1::2], strict=False)
            ]
            nodes = paired + nodes[2 * len(paired) :]
        return nodes[0]

    def _solved(self, node: Node, weights: FloatArray, lacking: list[FloatArray]) -> FloatArray | None:
        """The coefficients [d] that are best for a preference, among the models of a node.

        None if something has to be evaluated before; what was not issued yet is added to what is `lacking`.
        """
        if node.parts is None:
            alone: FloatArray = np.eye(len(self.problem.space))[node.leaves[0]]
            return alone
        one, other = (self._solved(part, weights, lacking) for part in node.parts)
        if one is None or other is None:
            return None
        points = [self._stored(a * one + b * other) for a, b in self._pairs]
        told = {point.tobytes(): place for place, point in enumerate(self.units())}
        new = [point for point in points if self._is_new(point)]
        lacking += new
        if new or self._pending_of(points):
            return None
        rows = [told.get(point.tobytes(), -1) for point in points]
        known = [place for place, row in enumerate(rows) if row >= 0]
        middle: FloatArray = (one + other) / 2
        if len(known) < terms(2):  # the others failed
            return middle
        pairs, steps = self._pairs[known], np.linspace(0.0, 1.0, GRID)
        grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        total = np.zeros(len(grid))
        for leaf in node.leaves:
            place = self._tasks[leaf]
            sign = self.problem.objectives[place].sign
            values = np.array([self.archive.values[rows[each]][place] * sign for each in known])
            try:
                total += weights[leaf] * sign * fit(pairs, values).mean(grid)
            except SurrogateError as error:
                logger.warning("NestedMAP takes the middle of two, of which there is no model: %s", error)
                return middle
        best = grid[int(total.argmin())]
        found: FloatArray = np.clip(best[0] * one + best[1] * other, 0.0, 1.0)
        return found

    def _is_new(self, point: FloatArray) -> bool:
        """Whether a point is still to be issued, and may be: what breaks a known constraint counts as failed."""
        config = self.config(point)
        return not self.seen(config) and self.within_known_bounds(config)

    def _pending_of(self, points: Iterable[FloatArray]) -> bool:
        """Whether one of some points is planned or under way."""
        pending = {self._stored_of(config).tobytes() for config in [*self._open.values(), *self._waiting()]}
        return any(point.tobytes() in pending for point in points)

    def _value(self, point: FloatArray, task: int) -> float:
        """What a point scored in a task, less is better; infinite where it failed."""
        wanted = self._stored(point)
        found = next((place for place, each in enumerate(self.units()) if (each == wanted).all()), None)
        return np.inf if found is None else float(self.archive.values[found][self._tasks[task]])

    def _stored(self, point: FloatArray) -> FloatArray:
        """A point of the unit cube as it comes back from the space."""
        return self._stored_of(self.config(np.clip(point, 0.0, 1.0)))

    def _stored_of(self, config: Config) -> FloatArray:
        found: FloatArray = self.unit(self.problem.space.encode(config)[None])[0]
        return found
