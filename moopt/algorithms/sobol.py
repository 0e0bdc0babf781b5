"""Sobol points: like random search, but spread evenly. Learns nothing from what it is told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats.qmc import Sobol as Sequence

from moopt.algorithms.base import Algorithm
from moopt.jobs import Job
from moopt.problem import Problem
from moopt.space import Config

BLOCK = 64
"""Points drawn at a time: a power of two, as the sequence likes it."""


class Sobol(Algorithm):
    """Draws candidates along a scrambled Sobol sequence (Sobol 1967, Owen 1998), each at most once.

    The study's seed scrambles the sequence; trial t begins to look for its candidate at point t.
    """

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        space = problem.space
        margin = space.discrete / 2
        self._low, self._span = space.lower - margin, space.upper - space.lower + 2 * margin

    def ask(self, n: int) -> list[Job]:
        return self.jobs(self.unseen(self._draws(), n, self.rng()))

    def _draws(self) -> Iterator[Config]:
        """The candidates of the sequence from the next trial's on."""
        block, skipped = divmod(self.next_trial, BLOCK)
        sequence = Sequence(len(self.problem.space), rng=np.random.default_rng(self.seed))
        if block:
            sequence.fast_forward(block * BLOCK)
        while True:
            points = sequence.random(BLOCK)[skipped:]
            yield from self.problem.space.decode_all(self._low + points * self._span)
            skipped = 0
