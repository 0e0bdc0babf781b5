"""ParEGO: one Gaussian process on a random scalarisation, the cheap model-based yardstick."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.acquisition import expected_improvement
from moopt.algorithms.base import Algorithm, positive, share
from moopt.algorithms.variation import Variation, spread
from moopt.errors import SurrogateError
from moopt.jobs import Job, Outcome
from moopt.one_thread import one_thread
from moopt.problem import Problem
from moopt.space import Config
from moopt.surrogates import Data
from moopt.surrogates.gaussian import Encoding, GaussianProcess

FloatArray = npt.NDArray[np.float64]

logger = logging.getLogger("moopt")

FEW = 10
"""From how many of the best for a preference candidates are looked for."""
FITTED = 200
"""How many trials a process is fitted to at most: the better half of them for the preference, the rest drawn."""


class ParEGO(Algorithm):
    """Expected improvement of a randomly weighted augmented Chebyshev value (Knowles 2006).

    Every trial draws its weights, fits a process to what was told, and takes the best of candidates near good ones
    and of random ones. Pending trials count as if they had brought what the process expects of them. What is
    infeasible is worse than all that is feasible. When a process cannot be fitted, the trial is random, and a warning
    is logged.

    Args:
        opening: Trials before the first process, the baselines a study opens with counted.
        candidates: How many candidates the expected improvement is computed for.
        rho: The weight of the sum in the augmented Chebyshev value.
    """

    def __init__(self, opening: int = 20, candidates: int = 500, rho: float = 0.05) -> None:
        self.opening, self.candidates = positive("opening", opening), positive("candidates", candidates)
        self.rho = share("rho", rho)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._variation = Variation(problem)
        self._pending: dict[int, Config] = {}
        self._changes = 0
        self._plan: tuple[int, list[Config]] = (0, [])

    @one_thread()
    def ask(self, n: int) -> list[Job]:
        if self._plan[0] != self._changes:
            self._plan = (self._changes, [])
        planned = self._plan[1]
        while len(planned) < n and (found := self._next(planned)):
            planned += found
        return self.jobs(planned[:n])

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        self._pending |= {job.trial: job.config for job in jobs if job.kind == "evaluate"}
        self._changes += 1

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, _ in outcomes:
            self._pending.pop(job.trial, None)
        self._changes += 1

    def _next(self, planned: Sequence[Config]) -> list[Config]:
        """The candidate after those that this ask has planned; none if nothing is left."""
        trial = self.next_trial + len(planned)
        rng = np.random.default_rng([self.seed, trial])
        if trial >= self.opening and len(self.archive) > 1:
            targets = self._targets(rng)
            near = self._near(np.argsort(targets, kind="stable")[:FEW], rng)
            drawn = self.unseen(near, self.candidates, rng, planned)
            if best := self._most_promising(drawn, targets, planned, rng):
                return best
        return self.unseen(spread(self.problem, self.opening, rng), 1, rng, planned)

    def _targets(self, rng: np.random.Generator) -> FloatArray:
        """What is minimised, [n]: the augmented Chebyshev value for weights drawn uniformly from the simplex."""
        values, violations = np.array(self.archive.points), np.array(self.archive.violations)
        feasible = violations <= 0
        within = values[feasible] if feasible.any() else values
        weights = rng.dirichlet(np.ones(values.shape[1]))
        targets = pareto.chebyshev(pareto.scaled(values, within), weights, self.rho)
        if feasible.all():
            return targets
        worst = float(targets[feasible].max(initial=0.0))
        return np.where(feasible, targets, worst + violations / violations.max())

    def _near(self, best: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterator[Config]:
        """Candidates without end: a variation of one of the best, a crossing of two, a random one, in turn."""
        codes = np.array([self.archive.codes[i] for i in best])
        while True:
            rows = codes[rng.integers(len(codes), size=(2, 8))]
            yield from self._variation.configs(rows.reshape(16, -1), rng)
            yield from self._variation.configs(self._variation.crossed(rows, rng), rng)
            yield from (self.problem.space.sample(rng) for _ in range(8))

    def _most_promising(
        self, drawn: Sequence[Config], targets: FloatArray, planned: Sequence[Config], rng: np.random.Generator
    ) -> list[Config]:
        """The one of greatest expected improvement; none if there is none or no process can be fitted."""
        if not drawn:
            return []
        kept = np.argsort(targets, kind="stable")
        if len(kept) > FITTED:
            kept = np.concatenate([kept[: FITTED // 2], rng.permutation(kept[FITTED // 2 :])[: FITTED // 2]])
        space = self.problem.space
        under_way = [space.encode(config) for config in [*self._pending.values(), *planned]]
        data = Data(np.array(self.archive.codes)[kept], targets[kept])
        try:
            process = GaussianProcess(data, Encoding(space))
            if under_way:
                codes = np.array(under_way)
                process = process.conditioned(
                    Data(np.vstack([data.codes, codes]), np.append(data.values, process.mean(codes)))
                )
            codes = np.array([space.encode(config) for config in drawn])
            promise = expected_improvement(process.mean(codes), process.deviations(codes), float(data.values.min()))
        except SurrogateError as error:
            logger.warning("ParEGO fits no Gaussian process to %d trials and goes on at random: %s", len(kept), error)
            return []
        return [drawn[int(np.argmax(promise))]]
