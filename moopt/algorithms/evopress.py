"""EvoPress: level switches within exact budgets, offspring compared on ever more text that is fresh in each generation.

Sieberling et al. 2024, "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moopt.algorithms.base import positive, rungs_of, share
from moopt.algorithms.budgeted import Budgeted, Budgets
from moopt.algorithms.switches import Switches
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Fidelity, Problem
from moopt.space import Config

DRAWS = 8
"""Draws of a generation, for each of its offspring."""
OPENING = 15
"""About how many trials come before the first generation."""


@dataclass
class Lane:
    """The search at one budget.

    Attributes:
        budget: The cost that candidates may have.
        parent: The candidate that offspring are made of.
        place: The archive's number of that.
        loss: Its loss at the problem's own fidelity.
        generation: How many generations have ended.
        running: Whether one is under way.
        stage: Which stage of it.
        waiting: Candidates of the stage that are not issued yet; those of the first have no number yet.
        open: The numbers of those that are issued and not told.
        found: What those of the stage that are told have lost, by number.
        configs: The offspring that are left, by number.
        doomed: The numbers of those that are to be pruned.
    """

    budget: int
    parent: Job | None = None
    place: int = -1
    loss: float = np.inf
    generation: int = 0
    running: bool = False
    stage: int = 0
    waiting: list[Config | int] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    found: dict[int, float] = field(default_factory=dict)
    configs: dict[int, Config] = field(default_factory=dict)
    doomed: list[int] = field(default_factory=list)


class EvoPress(Budgeted):
    """Improves one candidate at each budget by (1 + offspring) evolution, elitist.

    In a generation the offspring are screened on a minibatch that is new to all of them, few tokens first; a share
    goes on to the next rung, where the minibatch is new again. At the problem's own number of tokens the parent is
    screened, too: who loses least there is the next parent, and is evaluated if it is new. Where the problem has no
    rungs, all offspring are evaluated, and the best becomes the parent if it is better.

    Args:
        budgets: Upper bounds on known objectives, such as {"size_mb": [80, 88]}, or costs in the unit of
            `problem.costs()`; None: the costs of the problem's baselines.
        offspring: Candidates of a generation.
        keep: The share of them that goes on from each rung to the next, one at least.
        rungs: Tokens of the screens before the last, the fewest first; None: `problem.rungs`. Empty: no screens.
    """

    screens = True

    def __init__(
        self, budgets: Budgets = None, offspring: int = 16, keep: float = 0.25,
        rungs: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(budgets)
        self.offspring, self.keep = positive("offspring", offspring), share("keep", keep)
        if not 0 < self.keep < 1:
            raise AlgorithmError(f"keep is {keep!r}; expected a share between 0 and 1, such as 0.25.")
        self.rungs = None if rungs is None else rungs_of(rungs)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._stages = self._screens(problem)
        self._switches = Switches(self._costs)
        self._lanes = [Lane(budget) for budget in self._amounts]

    def _screens(self, problem: Problem) -> list[int]:
        """The tokens of each stage of screens, those of an evaluation last; none where there are no rungs."""
        rungs, most = list(problem.rungs) if self.rungs is None else self.rungs, problem.fidelity.tokens
        if rungs and rungs[-1] >= most:
            raise AlgorithmError(f"The last rung has {rungs[-1]} tokens; expected fewer than the problem's own {most}.")
        return [*rungs, most] if rungs else []

    def ask(self, n: int) -> list[Job]:
        ends = [config for config in self._ends if not self.seen(config)]
        if ends:
            return self.jobs(ends[:n])
        jobs = [Job(t, lane.configs[t], "prune") for lane in self._lanes for t in lane.doomed]
        busy = [lane for lane in self._lanes if lane.running]
        for lane in busy:
            jobs += self._next(lane, lane.waiting)[: self._room(n, jobs)]
        begun: list[Job] = []
        for lane in self._idle():
            if self._room(n, jobs):
                begun = self._next(lane, self._bred(lane))[: self._room(n, jobs)]
                jobs += begun
            if begun:  # numbers of new trials would collide: the next lane's turn is at the next ask
                break
        if jobs or any(lane.open for lane in busy):
            return jobs
        return self._variations(n, [lane.parent.config for lane in self._lanes if lane.parent is not None])

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        stages = self._screens(problem)
        tokens = sum(max(1, self.offspring * self.keep**k) * stage for k, stage in enumerate(stages))
        return {"screen": (max(0, trials - OPENING), round(tokens))} if stages else {}

    def issued(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            lane = self._lane(job)
            if lane is not None and not lane.running:
                lane.running, lane.waiting, lane.configs = True, self._bred(lane), {}
        super().issued(jobs)
        for job in jobs:
            if (lane := self._lane(job)) is not None:
                lane.waiting.remove(job.trial if job.trial in lane.waiting else job.config)
                lane.configs[job.trial] = job.config
                lane.open.add(job.trial)
            elif job.kind == "prune":
                for each in self._lanes:
                    each.doomed = [trial for trial in each.doomed if trial != job.trial]

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in outcomes:
            super().tell([(job, outcome)])
            lane = self._lane(job)
            if lane is None:
                self._begun_with(job, outcome)
                continue
            lane.open.discard(job.trial)
            lane.found[job.trial] = self._lost(job, outcome)
            if not lane.open and not lane.waiting:
                self._advance(lane)

    def _begun_with(self, job: Job, outcome: Outcome) -> None:
        """A candidate of the opening: a lane's first parent is the best within its budget."""
        if job.kind != "evaluate" or isinstance(outcome, Failure) or self.archive.broken[-1] > 0:
            return
        loss, cost = self._lost(job, outcome), self._cost(job.config)
        for lane in self._lanes:
            if not lane.generation and not lane.running and cost <= lane.budget and loss < lane.loss:
                lane.parent, lane.loss, lane.place = job, loss, len(self.archive) - 1

    def _lost(self, job: Job, outcome: Outcome) -> float:
        """The loss that was found; inf where none was, or where a constraint does not hold."""
        if isinstance(outcome, Failure):
            return np.inf
        objective = self.problem.objectives[self._loss]
        if any(c.name in outcome.values and c.excess(outcome.values[c.name]) > 0 for c in self.problem.constraints):
            return np.inf
        return objective.sign * outcome.values[objective.name]

    def _idle(self) -> list[Lane]:
        """Lanes that may begin a generation and are preferred, or nearest to it; those with the fewest first."""
        if any(lane.running and lane.waiting for lane in self._lanes):
            return []
        lanes = [lane for lane in self._lanes if lane.parent is not None and not lane.running]
        places = set(self.archive.least_violating([lane.place for lane in lanes]))
        return sorted((lane for lane in lanes if lane.place in places), key=lambda lane: lane.generation)

    def _bred(self, lane: Lane) -> list[Config | int]:
        """New offspring of the lane's parent, the same whenever asked; fewer where its neighbourhood is searched."""
        assert lane.parent is not None
        rng = np.random.default_rng([self.seed, self._lanes.index(lane), lane.generation])
        choice, repaired = self._choice(lane.parent.config), self.repairing(rng)
        found: dict[Any, Config | int] = {}
        for _ in range(DRAWS * self.offspring):
            config = repaired(self._configuration(self._switches.draw(choice, lane.budget, rng)))
            if not self.seen(config) and self.within_known_bounds(config) and self._cost(config) <= lane.budget:
                found[self.problem.space.key(config)] = config
            if len(found) == self.offspring:
                break
        return list(found.values())

    def _next(self, lane: Lane, waiting: Sequence[Config | int]) -> list[Job]:
        """The jobs of a lane that are not issued yet."""
        note = {"budget": lane.budget, "generation": lane.generation, "stage": lane.stage}
        kind, fidelity = self._step(lane)
        new = iter(range(self.next_trial, self.next_trial + len(waiting)))
        return [
            Job(each, lane.configs[each], kind, fidelity, note=note) if isinstance(each, int)
            else Job(next(new), each, kind, fidelity, note=note)
            for each in waiting
        ]  # fmt: skip

    def _step(self, lane: Lane) -> tuple[Any, Fidelity]:
        """What is done to the candidates of a lane's stage; behind the last one the new parent is evaluated."""
        if lane.stage >= len(self._stages):
            return "evaluate", self.problem.fidelity
        batch = 1 + lane.generation * len(self._lanes) + self._lanes.index(lane)
        return "screen", Fidelity(self._stages[lane.stage], batch)

    def _advance(self, lane: Lane) -> None:
        """All of a stage are known: the best go on, and the others are pruned."""
        assert lane.parent is not None
        parent, found, lane.found = lane.parent.trial, lane.found, {}
        ranked = sorted(found, key=lambda trial: (found[trial], trial != parent))
        screens = lane.stage < len(self._stages)
        if not screens:
            self._inherit(lane, ranked)
            return
        last = lane.stage + 1 == len(self._stages)
        good = [trial for trial in ranked if found[trial] < np.inf]
        kept = good[: 1 if last else max(1, round(len(ranked) * self.keep))]
        lane.doomed += [trial for trial in ranked if trial not in kept and trial != parent]
        lane.stage += 1
        lane.waiting = [] if last and kept == [parent] else list(kept)
        if lane.waiting and lane.stage + 1 == len(self._stages):
            lane.configs[parent] = lane.parent.config
            lane.waiting.append(parent)
        if not lane.waiting:
            self._end(lane)

    def _inherit(self, lane: Lane, ranked: Sequence[int]) -> None:
        """What was evaluated is the next parent: after screens in any case, without them if it is better."""
        places = {job.trial: place for place, job in enumerate(self.archive.jobs)}
        for trial in ranked[:1]:
            place = places.get(trial)
            if place is not None and self.archive.broken[place] <= 0:
                loss = float(self.archive.values[place][self._loss])
                if self._stages or loss < lane.loss:
                    lane.parent, lane.place, lane.loss = self.archive.jobs[place], place, loss
        self._end(lane)

    def _end(self, lane: Lane) -> None:
        lane.running, lane.generation, lane.stage = False, lane.generation + 1, 0

    def _lane(self, job: Job) -> Lane | None:
        """The lane whose generation a job belongs to."""
        if "generation" not in job.note:
            return None
        return next(lane for lane in self._lanes if lane.budget == job.note["budget"])

    @staticmethod
    def _room(n: int, jobs: Sequence[Job]) -> int:
        """How many more may be asked for; what is pruned takes no worker."""
        return n - sum(job.kind != "prune" for job in jobs)
