"""Sequential knapsack: linearise the loss near a candidate, allocate exactly, measure, repeat, at several budgets.

A discrete Gauss-Newton step with a trust region. Near the best choice by all that is known, `problem.gradient` gives
for every change of one decision a linear and a curvature term, around a few drawn candidates that are averaged (see
`Linearisation`). Exact knapsacks on the average, with penalties for every decision that leaves the best candidate J,
propose candidates of the same cost for several radii. All are measured, the best becomes the next J.
Before that, knapsacks on the sensitivities a study opens with fill the front: they take no gradient. Once no step gains
any more, a model of what was measured goes on: over the whole front (`QNEHVI`), or at given budgets (`Exchanges`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from moopt.algorithms.base import positive
from moopt.algorithms.budgeted import Budgeted, Budgets
from moopt.algorithms.changes import Changes
from moopt.algorithms.exchanges import Exchanges
from moopt.algorithms.linearisation import Linearisation
from moopt.algorithms.qnehvi import QNEHVI
from moopt.budgets import Knapsack
from moopt.errors import BudgetError
from moopt.jobs import Job, Outcome
from moopt.problem import Evaluation, Fidelity, Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SAMPLES, FEWEST = 0.55, 4
"""Gradients of a step, in square roots of the number of decisions (8 for 210 of them), and how many those are at least.
"""
PRIOR = 4
"""Gradients that the sensitivities of an opening count as."""
RADII = (0.55, 1.65)
"""How many decisions a step may change, about, in square roots of the number of decisions: 8 and 24 of 210."""
NEW_A_STEP = 2
"""About how many candidates of a step are new."""
OPENING = 25
"""About how many trials come before the first step."""
PARTS = 4
"""Knapsacks from a budget to the next before the first step: wide gaps in a front lose more than steps gain."""
FIRST_EXPECTATION = 0.1
"""The relative gain that a budget without a step is taken to promise."""
PATIENCE = 0.3
"""What is left of a budget's expectation after a step that gained nothing."""
TRIES = 3
"""Steps in a row that may gain nothing before a budget rests until it has a better candidate."""


@dataclass
class Lane:
    """The search at one budget.

    Attributes:
        near: What is learned near its best choice.
        best: The best candidate within it so far.
        place: The archive's number of that.
        loss: Its loss.
        expected: The gain the next step is taken to promise, as a share of the loss.
        before: The loss when the present step began.
        waiting: Candidates of the present step that are not issued yet.
        open: Keys of candidates of the present step that are not told yet.
        vain: Steps from the present best that gained nothing.
    """

    near: Linearisation
    best: Job | None = None
    place: int = -1
    loss: float = np.inf
    expected: float = FIRST_EXPECTATION
    before: float = np.inf
    waiting: list[Config] = field(default_factory=list)
    open: set[tuple[object, ...]] = field(default_factory=set)
    vain: int = 0

    @property
    def budget(self) -> int:
        """The cost that candidates may have."""
        return self.near.budget

    @property
    def idle(self) -> bool:
        """Whether a new step may begin."""
        return self.best is not None and not (self.near.under_way or self.waiting or self.open)


class SequentialKnapsack(Budgeted):
    """Improves candidates at several budgets, the one that promises most next.

    Args:
        tokens: Tokens of each gradient; None: as many as the problem says (`problem.gradient_tokens`).
        budgets: Upper bounds on known objectives, such as {"size_mb": [80, 88]}, or costs in the unit of
            `problem.costs()`; None: the costs of the problem's baselines, and between those what the sensitivities say.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"costs", "gradient"})

    def __init__(self, tokens: int | None = None, budgets: Budgets = None) -> None:
        super().__init__(budgets)
        self.tokens = None if tokens is None else positive("tokens", tokens)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._predicted_best: list[Config] = list(self._ends)
        self._hopes: dict[tuple[object, ...], float] = {}
        self._gradients = 0
        samples = _samples(len(self._costs))
        nears = [Linearisation(self._costs, b, samples, Changes(self._costs)) for b in self._amounts]
        self._lanes = [Lane(near) for near in nears]
        self._beside = QNEHVI() if self.budgets is None else Exchanges(self._loss, self._costs, nears)
        self._beside.start(problem, seed)

    def ask(self, n: int) -> list[Job]:
        proposed = [self._predicted_best, *(lane.waiting for lane in self._lanes)]
        waiting = [config for configs in proposed for config in configs if not self.seen(config)]
        if waiting:
            distinct = list({self.problem.space.key(config): config for config in waiting}.values())
            return [self._foretold(job) for job in self.jobs(distinct[:n])]
        lane = self._stepping()
        if lane is not None:
            return [self._linearising(lane, place, sample) for place, sample in enumerate(lane.near.left[:n])]
        beside = self._beside
        beside.archive.region = self.archive.region
        known = self._preferred([lane for lane in self._lanes if lane.best is not None])
        if isinstance(beside, Exchanges):
            beside.nears = [lane.near for lane in known]
        return beside.ask(n) or self._variations(n, [lane.best.config for lane in known if lane.best is not None])

    def _stepping(self) -> Lane | None:
        """The lane to linearise at next: one that has begun a step, or the one that promises most."""
        if begun := [lane for lane in self._lanes if lane.near.under_way and lane.near.left]:
            return begun[0]
        idle = [lane for lane in self._lanes if lane.idle and lane.vain < TRIES]
        return max(self._preferred(idle), key=self._worth) if idle else None

    def _linearising(self, lane: Lane, place: int, sample: int) -> Job:
        """The gradient of a sample, the so-manieth of those that are asked for."""
        assert lane.best is not None
        temperature = 1 / (1 + lane.near.steps)
        choice = lane.near.draw(sample, temperature, self.seed, self._choice(lane.best.config))
        note = {"budget": lane.budget, "sample": sample}
        fidelity = Fidelity(self._gradient_tokens(self.problem), self._gradients + place)
        return Job(-1, self._configuration(choice), "gradient", fidelity, note=note)

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        steps = max(0, trials - OPENING) // NEW_A_STEP
        return {"gradient": (steps * _samples(len(problem.space)), self._gradient_tokens(problem))}

    def _gradient_tokens(self, problem: Problem) -> int:
        return self.tokens or problem.gradient_tokens or problem.fidelity.tokens

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        self._beside.issued(jobs)
        for job in jobs:
            if job.kind == "gradient":
                lane = self._lane(job)
                if not lane.near.under_way:
                    lane.before = lane.loss
                lane.near.issued(int(job.note["sample"]))
                self._gradients += 1
            elif job.kind == "evaluate":
                for lane in self._lanes:
                    lane.waiting = [config for config in lane.waiting if not self.seen(config)]

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            self._beside.tell([(job, outcome)])
            if job.kind == "sensitivity" and isinstance(outcome, Evaluation):
                table = np.array(outcome.attributes["table"])
                self._predicted_best = [*self._ends, *self._knapsacks(table)]
                for lane in self._lanes:
                    lane.near.changes.begin(table, PRIOR)
            elif job.kind == "gradient":
                self._linearised(self._lane(job), job, outcome)
            elif job.kind == "evaluate":
                self._evaluated(job, outcome)

    def _knapsacks(self, table: FloatArray) -> list[Config]:
        """The best candidates by a table, at the budgets and, unless those were given, between them."""
        knapsack = Knapsack(table, self._costs)
        choices = [knapsack.at(b) for b in (*self._amounts, *self._gaps()) if b >= knapsack.least]
        return [config for config in self._hoped(table, choices, 0.0) if self.within_known_bounds(config)]

    def _gaps(self) -> list[int]:
        """The least cost, and costs evenly between the budgets and beyond them; none where budgets were given."""
        if self.budgets is not None:
            return []
        knapsack = Knapsack(-self._costs, self._costs)
        gaps = pairwise([knapsack.least, *self._amounts, knapsack.most])
        between = [low + (high - low) * part // PARTS for low, high in gaps for part in range(1, PARTS)]
        return [knapsack.least, *between]

    def _hoped(self, table: FloatArray, choices: Sequence[IntArray], loss: float) -> list[Config]:
        """The configurations of choices; what a table of changes from a loss says of each is kept."""
        configs = [self._configuration(choice) for choice in choices]
        for config, choice in zip(configs, choices, strict=True):
            self._hopes[self.problem.space.key(config)] = loss + float(table[np.arange(len(choice)), choice].sum())
        return configs

    def _foretold(self, job: Job) -> Job:
        """The job with what is expected of its loss in its note: a number, for a table has no interval."""
        hope = self._hopes.get(self.problem.space.key(job.config), np.nan)
        objective = self.problem.objectives[self._loss]
        if not np.isfinite(hope):
            return job
        return replace(job, note={**job.note, "predicted": {objective.name: float(f"{objective.sign * hope:.6g}")}})

    def _lane(self, gradient: Job) -> Lane:
        """The lane that a gradient was asked for."""
        return next(lane for lane in self._lanes if lane.budget == gradient.note["budget"])

    def _preferred(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Those of lanes with a candidate whose candidate is in the region, or nearest to it."""
        places = set(self.archive.least_violating([lane.place for lane in lanes]))
        return [lane for lane in lanes if lane.place in places]

    def _evaluated(self, job: Job, outcome: Outcome) -> None:
        key = self.problem.space.key(job.config)
        if isinstance(outcome, Evaluation) and self.archive.broken[-1] <= 0:
            loss, cost = float(self.archive.values[-1][self._loss]), self._cost(job.config)
            for lane in self._lanes:
                if cost <= lane.budget and loss < lane.loss:
                    lane.best, lane.place, lane.loss, lane.vain = job, len(self.archive) - 1, loss, 0
        for lane in self._lanes:
            if key in lane.open:
                lane.open.discard(key)
                if not lane.open:
                    self._stepped(lane)

    def _stepped(self, lane: Lane) -> None:
        """All candidates of a step are known: what it gained decides when the next one comes."""
        gain = (lane.before - lane.loss) / self._size(lane.before) if lane.before < np.inf else 0.0
        lane.expected = max(gain, PATIENCE * lane.expected)
        lane.vain += gain <= 0

    def _size(self, loss: float) -> float:
        """What gains from a loss are a share of: the loss, or where one is not above 0 the range of all."""
        losses = [values[self._loss] for values in self.archive.values]
        return loss if min(losses) > 0 else float(np.ptp(losses)) or 1.0

    def _worth(self, lane: Lane) -> float:
        """What the next step promises: the geometric mean of its relative and its absolute gain.

        The relative gain alone would polish budgets where hardly anything is lost, the absolute one those that lose
        all.
        """
        return lane.expected * float(np.sqrt(self._size(lane.loss)))

    def _linearised(self, lane: Lane, job: Job, outcome: Outcome) -> None:
        """Once every gradient of a step is known, candidates are proposed."""
        if not lane.near.tell(int(job.note["sample"]), self._choice(job.config), outcome):
            return
        assert lane.best is not None
        choice = self._choice(lane.best.config)
        table = lane.near.changes.around(choice)
        candidates = self._hoped(table, self._proposals(table, choice, lane.budget), lane.loss)
        lane.waiting = [c for c in candidates if not self.seen(c) and self.within_known_bounds(c)]
        lane.open = {self.problem.space.key(config) for config in lane.waiting}
        if not lane.open:
            self._stepped(lane)

    def _proposals(self, table: FloatArray, choice: IntArray, budget: int) -> list[IntArray]:
        """The exact knapsack at several trust-region radii."""
        rows = np.arange(len(choice))
        span = np.where(self._costs < 0, 0, self._costs).max(axis=1)
        leaves = np.ones(table.shape)
        leaves[rows, choice] = 0
        scale = float(np.median(np.abs(table[np.isfinite(table) & (leaves > 0)]))) or 1.0
        found: dict[int, IntArray] = {}
        for penalty in scale * np.geomspace(1e-3, 30, 16):
            penalised = table + penalty * leaves * (span / span.mean())[:, None]
            try:
                proposed = Knapsack(penalised, self._costs).at(budget)
            except BudgetError:
                continue
            found[int((proposed != choice).sum())] = proposed
        found.pop(0, None)
        radii = np.array(RADII) * np.sqrt(len(choice))
        picked = {min(found, key=lambda changes: abs(np.log(changes / radius))) for radius in radii} if found else set()
        return [found[changes] for changes in sorted(picked)]


def _samples(decisions: int) -> int:
    """The gradients of a step."""
    return max(FEWEST, round(SAMPLES * float(np.sqrt(decisions))))
