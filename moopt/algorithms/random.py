"""Random search: every candidate drawn uniformly. The yardstick any other algorithm must beat."""

from __future__ import annotations

from collections.abc import Iterator

from moopt.algorithms.base import Algorithm
from moopt.jobs import Job
from moopt.space import Config


class Random(Algorithm):
    """Draws candidates uniformly from the space, each at most once."""

    def ask(self, n: int) -> list[Job]:
        rng = self.rng()

        def draws() -> Iterator[Config]:
            while True:
                yield self.problem.space.sample(rng)

        return self.jobs(self.unseen(draws(), n, rng))
