"""MM-MO: multi-objective model merging by Bayesian optimisation of few trials (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.algorithms.base import positive, switch
from moopt.algorithms.qnehvi import QNEHVI
from moopt.algorithms.rounds import Rounds
from moopt.algorithms.variation import spread
from moopt.errors import AlgorithmError
from moopt.jobs import Job, Outcome
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]

SCALE, CROSSED, PARENTS = 0.5, 0.5, 5
"""Of differential evolution, DE/rand/1/bin: F, CR, and from how many of the best parents are drawn."""
FEWEST = 3
"""Trials that a step of differential evolution is made of."""


class MMMO(Rounds):
    """qNEHVI in rounds, whose candidates are varied by the best trials and screened by how much they would tell.

    After some random trials a round takes a batch of candidates from qNEHVI. Weak-to-strong: each is also the target of
    a step of differential evolution between some of the best trials, and what comes of it is first. Screening: of all
    these the few are evaluated that the models know least of, by the sum over the objectives of the inverse variance,
    as Fisher information is for a normal distribution. The paper's third idea, sparsity, is an objective of the
    problem: `ModelMerge(distance=True)`.

    From arXiv:2407.00487. Each idea can be switched off, to see what it is worth.

    Args:
        opening: Random trials, those a study opens with counted.
        batch: Candidates that qNEHVI proposes in a round.
        evaluated: How many of a round's candidates are evaluated.
        weak_to_strong: Whether candidates are varied by the best trials.
        screening: Whether the least known are evaluated; otherwise the first, as qNEHVI ranks them.
    """

    def __init__(
        self,
        opening: int = 10,
        batch: int = 10,
        evaluated: int = 5,
        weak_to_strong: bool = True,
        screening: bool = True,
    ) -> None:
        self.opening, self.batch = positive("opening", opening), positive("batch", batch)
        self.evaluated = positive("evaluated", evaluated)
        if self.opening < FEWEST:
            raise AlgorithmError(f"opening is {self.opening}; evolution needs {FEWEST} trials or more.")
        self.weak_to_strong = switch("weak_to_strong", weak_to_strong)
        self.screening = switch("screening", screening)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._inner = QNEHVI(initial=self.opening)
        self._inner.start(problem, seed)

    def issued(self, jobs: Sequence[Job]) -> None:
        self._inner.settle()
        super().issued(jobs)
        self._inner.issued(jobs)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        self._inner.tell(outcomes)

    def believed(self) -> FloatArray | None:
        return self._inner.believed()

    def plan(self, rng: np.random.Generator) -> list[Config]:
        if (left := self.opening - self.upcoming) > 0:
            return self.unseen(spread(self.problem, self.opening, rng), left, rng)
        if self._inner.beliefs() is None:
            return self.unseen(spread(self.problem, self.opening, rng), self.evaluated, rng)
        self._inner.archive.region = self.archive.region
        candidates = [job.config for job in self._inner.ask(self.batch)]
        if self.weak_to_strong:
            candidates = [*(self._evolved(config, rng) for config in candidates), *candidates]
        fresh = self.unseen(iter(candidates), len(candidates), rng)
        return self._least_known(fresh) if self.screening else fresh[: self.evaluated]

    def _evolved(self, target: Config, rng: np.random.Generator) -> Config:
        """A target crossed with the sum of one of the best trials and a share of the difference of two others."""
        best = self._best()
        a, b, c = (best[place] for place in rng.permutation(len(best))[:FEWEST])
        row = self.unit(self.problem.space.encode(target)[None])[0]
        crossed = rng.random(len(row)) < CROSSED
        crossed[rng.integers(len(row))] = True
        return self.config(np.clip(np.where(crossed, a + SCALE * (b - c), row), 0.0, 1.0))

    def _best(self) -> FloatArray:
        """The best trials, by rank and then by crowding, [p, d] in the unit cube."""
        points, violations = np.array(self.archive.points), np.array(self.archive.violations)
        ranks = pareto.ranks(points)
        crowding = np.zeros(len(points))
        for rank in np.unique(ranks):
            crowding[ranks == rank] = pareto.crowding(points[ranks == rank])
        order = np.lexsort((-crowding, ranks, violations))
        return self.units()[order[:PARENTS]]

    def _least_known(self, candidates: list[Config]) -> list[Config]:
        """The candidates of the least Fisher information, in that order."""
        beliefs = self._inner.beliefs()
        if beliefs is None or not candidates:
            return candidates[: self.evaluated]
        codes = np.array([self.problem.space.encode(config) for config in candidates])
        information = np.zeros(len(candidates))
        for surrogate in beliefs.surrogates.values():
            variances = np.diag(surrogate.posterior(codes)[1])
            information += 1 / np.maximum(variances, 1e-12)
        return [candidates[place] for place in np.argsort(information, kind="stable")[: self.evaluated]]
