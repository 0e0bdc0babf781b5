"""RCO: gradient search on the true loss through relaxed choices, at an exact budget at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moopt.algorithms.base import positive, share
from moopt.algorithms.budgeted import Budgeted, Budgets
from moopt.budgets import Knapsack
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Fidelity, Problem
from moopt.relaxation import Relaxation
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]

TRAVEL = 30.0
"""About how far logits move at most in all steps together: with the paper's 200 steps, 0.15 each on average."""
OPENING = 15
"""About how many trials come before the first step."""
SMALLEST = 1e-8
"""What is added to a sensitivity before its logarithm is taken."""


class RCO(Budgeted):
    """Moves the probabilities of options against the loss's gradient, one budget after the other.

    The dearest is first, or where there is a preference the dearest whose best candidate is nearest to it.

    In a step some candidates are drawn within the budget, and the loss is linearised around each on fresh text. How
    the loss changes with their options goes on to the logits as if the candidates were the softmax they were drawn
    from (straight-through). A few times at every budget, and at its end, the likeliest candidate is evaluated; the
    next budget begins from the logits of this one.

    Args:
        budgets: Upper bounds on known objectives, such as {"size_mb": [80, 88]}, or costs in the unit of
            `problem.costs()`; None: the costs of the problem's baselines.
        steps: Steps at every budget.
        samples: Candidates of a step, each a job of its own.
        tokens: Tokens of each gradient.
        hot: The temperature of the first step at a budget.
        cold: That of the last; in between it falls exponentially.
        decisions: How often at each budget the likeliest candidate is evaluated.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"costs", "gradient"})

    def __init__(
        self, budgets: Budgets = None, steps: int = 200, samples: int = 4, tokens: int = 2048,
        hot: float = 1.0, cold: float = 0.01, decisions: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(budgets)
        self.steps, self.samples = positive("steps", steps), positive("samples", samples)
        self.tokens, self.decisions = positive("tokens", tokens), positive("decisions", decisions)
        self.hot, self.cold = share("hot", hot), share("cold", cold)
        if not 0 < self.cold <= self.hot:
            raise AlgorithmError(f"cold is {cold!r} and hot {hot!r}; expected 0 < cold <= hot.")

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._left = sorted(self._allowed(), reverse=True)
        self._logits: FloatArray = np.zeros(self._costs.shape)
        self._budget: int | None = None
        self._place, self._step = 0, 0
        self._asked: set[int] = set()
        self._found: dict[int, FloatArray | None] = {}
        self._decided: list[Config] = list(self._ends)
        self._best: dict[int, int] = {}
        self._relaxation: Relaxation | None = None

    def ask(self, n: int) -> list[Job]:
        decided = [config for config in self._decided if not self.seen(config)]
        if decided:
            return self.jobs(decided[:n])
        budget = self._budget or self._next_budget()
        if budget:
            left = [sample for sample in range(self.samples) if sample not in self._asked]
            return [self._linearising(budget, sample) for sample in left[:n]]
        best = self.archive.least_violating(list(self._best.values()))
        return self._variations(n, [self.archive.jobs[place].config for place in best])

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        decisions = min(max(0, trials - OPENING), self.decisions * self._lowered())
        return {"gradient": (decisions * self.steps * self.samples // self.decisions, self.tokens)}

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if job.kind == "gradient":
                self._asked.add(int(job.note["sample"]))
                if self._budget is None:
                    self._budget = int(job.note["budget"])
                    self._left.remove(self._budget)
                    self._relaxation = Relaxation(self._costs, self._budget, self._logits)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            if job.kind == "sensitivity" and isinstance(outcome, Evaluation):
                table = np.array(outcome.attributes["table"])
                self._logits = -np.log(np.where(np.isfinite(table), table, 0.0).clip(0.0) + SMALLEST)
            elif job.kind == "gradient":
                self._linearised(job, outcome)
            elif job.kind == "evaluate" and isinstance(outcome, Evaluation) and self.archive.broken[-1] <= 0:
                self._compare(len(self.archive) - 1)

    def _allowed(self) -> list[int]:
        """The budgets within which the dearest candidate breaks no known constraint."""
        if not self.problem.constraints:
            return self._amounts
        dearest = Knapsack(-self._costs, self._costs)
        return [b for b in self._amounts if self.within_known_bounds(self._configuration(dearest.at(b)))]

    def _next_budget(self) -> int | None:
        """The dearest that is left, of those whose best candidates are in the region or nearest to it."""
        known = {budget: self._best[budget] for budget in self._left if budget in self._best}
        preferred = self.archive.least_violating(list(known.values()))
        nearest = [budget for budget, place in known.items() if place in preferred]
        return next(iter(nearest or self._left), None)

    def _relaxed(self, budget: int) -> Relaxation:
        """The relaxation at a budget: the present one, or one that would begin."""
        return self._relaxation or Relaxation(self._costs, budget, self._logits)

    def _temperature(self) -> float:
        spent = self._step / max(self.steps - 1, 1)
        return float(self.hot * (self.cold / self.hot) ** spent)

    def _rate(self) -> float:
        """How far logits move at most in the present step: half a cosine, so that the last ones settle."""
        return float(TRAVEL / self.steps * (1 + np.cos(np.pi * (self._step + 0.5) / self.steps)))

    def _noise(self, sample: int) -> np.random.Generator:
        """The noise of a candidate of the present step: the same whenever asked."""
        return np.random.default_rng([self.seed, self._place, self._step, sample])

    def _linearising(self, budget: int, sample: int) -> Job:
        batch = (self._place * self.steps + self._step) * self.samples + sample
        relaxation = self._relaxed(budget)
        choice = relaxation.likeliest(relaxation.noisy(self._noise(sample)))
        note = {"budget": budget, "step": self._step, "sample": sample}
        return Job(-1, self._configuration(choice), "gradient", Fidelity(self.tokens, batch), note=note)

    def _linearised(self, job: Job, outcome: Outcome) -> None:
        """Once every candidate of a step is known, the step is taken."""
        assert self._relaxation is not None
        sample = int(job.note["sample"])
        self._found[sample] = None if isinstance(outcome, Failure) else self._gradient(sample, outcome.attributes)
        if len(self._found) < self.samples:
            return
        known = [found for _, found in sorted(self._found.items()) if found is not None]
        if known:
            self._relaxation.step(np.mean(known, axis=0), self._rate())
        self._step += 1
        self._asked, self._found = set(), {}
        if self._step % max(self.steps // self.decisions, 1) == 0 or self._step == self.steps:
            self._decide(self._relaxation)
        if self._step == self.steps:
            self._logits, self._relaxation, self._budget = self._relaxation.logits, None, None
            self._place, self._step = self._place + 1, 0

    def _gradient(self, sample: int, tables: Any) -> FloatArray:
        """What the loss's slopes [decisions, options] around a candidate mean for the logits it was drawn from."""
        assert self._relaxation is not None
        soft = self._relaxation.softmax(self._relaxation.noisy(self._noise(sample)) / self._temperature())
        slopes = np.array(tables["linear"], dtype=float)
        slopes = np.where(np.isfinite(slopes) & (self._costs >= 0), slopes, 0.0)
        inner = (soft * slopes).sum(axis=1, keepdims=True)
        found: FloatArray = soft * (slopes - inner) / self._temperature()
        return found

    def _decide(self, relaxation: Relaxation) -> None:
        config = self._configuration(relaxation.likeliest())
        if not self.seen(config) and self.within_known_bounds(config) and config not in self._decided:
            self._decided.append(config)

    def _compare(self, place: int) -> None:
        """Remember the best candidate within each budget, by its number in the archive."""
        cost = self._cost(self.archive.jobs[place].config)
        for budget in self._amounts:
            best = self._best.get(budget)
            if cost <= budget and (best is None or self._lost(place) < self._lost(best)):
                self._best[budget] = place

    def _lost(self, place: int) -> float:
        return float(self.archive.values[place][self._loss])
