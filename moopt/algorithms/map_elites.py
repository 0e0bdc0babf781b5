"""MAP-Elites: the best candidate for every cell of a map that the user picks. pyribs keeps the map."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from moopt.algorithms.base import Algorithm, positive
from moopt.algorithms.variation import Variation, spread
from moopt.descriptors import EDGE, Descriptor, described, quality, ranges, sides
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem, known_values
from moopt.space import Config

logger = logging.getLogger("moopt")

PAIRS = 16
"""Pairs of parents that are crossed at a time."""


class MAPElites(Algorithm):
    """Fills a map, such as size by latency, with the best candidate of each cell (Mouret and Clune 2015).

    Parents are drawn uniformly from the cells, crossed and varied. The map is pyribs' grid archive; install it with
    `pip install -e '.[qd]'` in the clone. What is infeasible gets no cell, and is a parent only while nothing feasible
    is known; what lacks a descriptor gets none either, which is logged.

    Args:
        descriptors: The map's sides: names, or `Descriptor`s with bins and ranges. None: the known objectives, else
            those that are not the quality, two at most.
        quality: The objective that decides within a cell. None: the first that is measured.
        opening: Trials before the first offspring, the baselines a study opens with counted.

    Raises:
        AlgorithmError: pyribs is missing, or a name is unknown.
    """

    def __init__(
        self, descriptors: Sequence[str | Descriptor] | None = None, quality: str | None = None, opening: int = 20
    ) -> None:
        if descriptors is not None and (not isinstance(descriptors, list | tuple) or not descriptors):
            raise AlgorithmError(f"descriptors is {descriptors!r}; expected a list with one name or more, or None.")
        if not all(isinstance(d, (str, Descriptor)) for d in descriptors or ()):
            raise AlgorithmError(f"descriptors is {descriptors!r}; expected names or Descriptors.")
        named = None if descriptors is None else [Descriptor(d) if isinstance(d, str) else d for d in descriptors]
        self.descriptors, self.quality, self.opening = named, quality, positive("opening", opening)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._best = quality(problem.objectives, self.quality)
        self._objective = list(problem.objectives).index(self._best)
        self._sides = sides(problem.objectives, self._best, self.descriptors)
        self._variation = Variation(problem)
        self._placed: list[int] = []
        self._points: list[list[float]] = []
        self._spanned = np.array([[np.inf], [-np.inf]]) * np.ones(len(self._sides))
        self._ranges = np.zeros_like(self._spanned)
        self._map = _grid(self._sides)

    def ask(self, n: int) -> list[Job]:
        rng = self.rng()
        opens = self.next_trial < self.opening or len(self.archive) == 0
        draws = spread(self.problem, self.opening, rng) if opens else self._offspring(rng)
        return self.jobs(self.unseen(draws, n, rng))

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            if job.kind == "evaluate" and not isinstance(outcome, Failure) and self.archive.broken[-1] <= 0:
                known = known_values(self.problem, job.config)
                try:
                    point = described(self._sides, {**outcome.attributes, **known, **outcome.values})
                except AlgorithmError as error:
                    logger.warning("Trial %d is left off the map: %s", job.trial, error)
                    continue
                self._points.append(point)
                self._placed.append(len(self.archive) - 1)
                self._place()

    def settings(self) -> dict[str, Any]:
        named = None if self.descriptors is None else [asdict(descriptor) for descriptor in self.descriptors]
        return {**super().settings(), "descriptors": named}

    def _place(self) -> None:
        """Put the latest candidate on the map; all of them anew if the map has grown."""
        point = np.array(self._points[-1])
        self._spanned = np.array([np.minimum(self._spanned[0], point), np.maximum(self._spanned[1], point)])
        needed = ranges(self._sides, self._spanned)
        grown = not np.array_equal(needed, self._ranges)
        if grown:
            self._ranges, self._map = needed, _grid(self._sides)
        latest = slice(0 if grown else -1, None)
        low, high = self._ranges
        placed = self._placed[latest]
        self._map.add(
            np.array(placed)[:, None],
            np.array([-self.archive.values[place][self._objective] for place in placed]),
            (np.array(self._points[latest]) - low) / (high - low),
        )

    def _elites(self) -> list[int]:
        """The archive's numbers of the best of each cell in the region, or of the least infeasible."""
        if not self._placed:
            return [int(np.argmin(self.archive.violations))]
        return self.archive.least_violating(sorted(self._map.data("solution")[:, 0].astype(int).tolist()))

    def _offspring(self, rng: np.random.Generator) -> Iterator[Config]:
        codes = np.array([self.archive.codes[place] for place in self._elites()])
        while True:
            parents = rng.integers(len(codes), size=(2, PAIRS))
            yield from self._variation.configs(self._variation.crossed(codes[parents], rng), rng)


def _grid(descriptors: Sequence[Descriptor]) -> Any:
    """An empty map on the unit cube, of numbers of candidates."""
    try:
        from ribs.archives import GridArchive
    except ImportError:
        raise AlgorithmError("MAPElites needs the package ribs: pip install -e '.[qd]' in the clone.") from None
    bins = [descriptor.bins for descriptor in descriptors]
    return GridArchive(solution_dim=1, dims=bins, ranges=[(0.0, 1.0)] * len(bins), epsilon=EDGE)
