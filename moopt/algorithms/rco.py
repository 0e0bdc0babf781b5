"""RCO: gradient search on the true loss through relaxed choices, at an exact budget at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from moopt.algorithms.base import positive, share
from moopt.algorithms.budgeted import Budgeted, Budgets
from moopt.algorithms.changes import Changes
from moopt.algorithms.linearisation import Linearisation
from moopt.budgets import Knapsack
from moopt.errors import AlgorithmError
from moopt.jobs import Job, Outcome
from moopt.problem import Evaluation, Fidelity, Problem
from moopt.space import Config

OPENING = 15
"""About how many trials come before the first step."""
PRIOR = 4
"""Gradients that the sensitivities of an opening count as, and at most what was learnt at the budgets before."""


class RCO(Budgeted):
    """Moves the probabilities of options against the loss's gradient, one budget after the other.

    The dearest is first, or where there is a preference the dearest whose best candidate is nearest to it.

    In a step some candidates are drawn within the budget, and what every change of one decision does to the loss, to
    the second order, is found around each on fresh text. All that was found so far is averaged, the study's first
    sensitivities too; the logits are the averages over a falling temperature, shifted to the budget. A few times at
    every budget, and at its end, the best choice by the averages is evaluated; the next budget begins from them.

    The relaxation and its budget are from RCO. Its steps are the logits' own slopes in Adam, eight hundred gradients a
    budget; with a few dozen that stays far from where it goes, and averages do not (dual averaging, Nesterov 2009).

    Args:
        budgets: Upper bounds on known objectives, such as {"size_mb": [80, 88]}, or costs in the unit of
            `problem.costs()`; None: the costs of the problem's baselines.
        steps: Steps at every budget.
        samples: Candidates of a step, each a job of its own.
        tokens: Tokens of each gradient.
        hot: The temperature of the first step at a budget; at 1, decisions are drawn whose second-best option costs as
            much as the median's.
        cold: That after the last; in between it falls exponentially.
        decisions: How often at each budget the best choice by the averages is evaluated.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"costs", "gradient"})

    def __init__(
        self, budgets: Budgets = None, steps: int = 30, samples: int = 2, tokens: int = 512,
        hot: float = 1.0, cold: float = 0.1, decisions: int = 5,
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
        self._changes = Changes(self._costs)
        self._linearisation: Linearisation | None = None
        self._gradients = 0
        self._decided: list[Config] = list(self._ends)
        self._best: dict[int, int] = {}

    def ask(self, n: int) -> list[Job]:
        decided = [config for config in self._decided if not self.seen(config)]
        if decided:
            return self.jobs(decided[:n])
        near = self._linearisation or self._next_linearisation()
        if near is not None:
            return [self._linearising(near, place, sample) for place, sample in enumerate(near.left[:n])]
        best = self.archive.least_violating(list(self._best.values()))
        return self._variations(n, [self.archive.jobs[place].config for place in best])

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        decisions = min(max(0, trials - OPENING), self.decisions * self._lowered())
        return {"gradient": (decisions * self.steps * self.samples // self.decisions, self.tokens)}

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if job.kind == "gradient":
                if self._linearisation is None:
                    self._linearisation = self._near(int(job.note["budget"]))
                    self._left.remove(self._linearisation.budget)
                self._linearisation.issued(int(job.note["sample"]))
                self._gradients += 1

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            if job.kind == "sensitivity" and isinstance(outcome, Evaluation):
                self._changes.begin(np.array(outcome.attributes["table"]), PRIOR)
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

    def _near(self, budget: int) -> Linearisation:
        return Linearisation(self._costs, budget, self.samples, self._changes)

    def _next_linearisation(self) -> Linearisation | None:
        budget = self._next_budget()
        return None if budget is None else self._near(budget)

    def _temperature(self, step: int) -> float:
        return self.hot * float((self.cold / self.hot) ** (step / self.steps))

    def _linearising(self, near: Linearisation, place: int, sample: int) -> Job:
        config = self._configuration(near.draw(sample, self._temperature(near.steps), self.seed))
        note = {"budget": near.budget, "sample": sample}
        return Job(-1, config, "gradient", Fidelity(self.tokens, self._gradients + place), note=note)

    def _linearised(self, job: Job, outcome: Outcome) -> None:
        """Once every candidate of a step is known, the step is taken."""
        near = self._linearisation
        assert near is not None
        if not near.tell(int(job.note["sample"]), self._choice(job.config), outcome):
            return
        if near.steps % max(self.steps // self.decisions, 1) == 0 or near.steps == self.steps:
            self._decide(near.budget)
        if near.steps == self.steps:
            self._linearisation = None
            self._changes.weigh(PRIOR)

    def _decide(self, budget: int) -> None:
        """Have the best choice by the averages evaluated."""
        config = self._configuration(Knapsack(self._changes.table, self._costs).at(budget))
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
