"""How every study opens, whatever its algorithm: baselines, what is settled first, and exact knapsacks on a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np

from moopt.algorithms.base import Algorithm
from moopt.algorithms.settling import Settling
from moopt.budgets import Knapsack
from moopt.jobs import Failure, Job, Outcome
from moopt.preference import Preference
from moopt.problem import HasCosts, HasSensitivities, Problem
from moopt.space import Config

APART = 0.04
"""How far apart the budgets of the opening's knapsacks are at least, as a share of the costs there are."""


class Opening(Algorithm):
    """Baselines first, then the wrapped algorithm, which is told of them like of any other trial.

    Decisions that the problem wants settled `first` are searched by themselves next, and its `later_baselines` follow.
    A problem with `sensitivities` and `costs` gets further baselines: the exact knapsack on its table at the cost of
    every baseline and half way between neighbours; numbers beside the decisions stay at what was settled, or at those
    of the first baseline.

    Args:
        algorithm: What goes on from there.
        preference: The region that is searched; None: all of it.
    """

    def __init__(self, algorithm: Algorithm, preference: Preference | None = None) -> None:
        self.algorithm, self.preference = algorithm, preference

    def start(self, problem: Problem, seed: int) -> None:
        problem = problem if self.preference is None else self.preference.applied(problem)
        super().start(problem, seed)
        self.algorithm.start(problem, seed)
        if self.preference is not None:
            self.algorithm.archive.region = self.preference.region(problem)
        self._table_issued = self._table_told = False
        self._table: list[list[float]] | None = None
        self._planned: dict[tuple[Any, ...], tuple[str, Config]] = {}
        self._baselines = {name: problem.space.validate(config) for name, config in problem.baselines().items()}
        self._plan(self._baselines.items())
        self._settled = next(iter(self._baselines.values()), None)
        self._settling = self._first()
        if self._settled is not None and self._settling is None:
            self._later(self._settled)

    def ask(self, n: int) -> list[Job]:
        if self._tabled() and not self._table_issued:
            assert self.problem.sensitivity is not None
            return [Job(-1, {}, "sensitivity", self.problem.sensitivity)]
        if self._planned:
            numbered = enumerate(islice(self._planned.values(), n), self.next_trial)
            return [Job(t, config, fidelity=self.problem.fidelity, label=label) for t, (label, config) in numbered]
        if self._settling is not None and ((found := self._settling.ask(n)) or self._settling.waiting):
            return found
        if self._tabled() and not self._table_told:
            return []
        return self.algorithm.ask(n)

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        self.algorithm.issued(jobs)
        if self._settling is not None:
            self._settling.issued(jobs)
        for job in jobs:
            self._table_issued |= job.kind == "sensitivity"
            if job.kind == "evaluate":
                self._planned.pop(self.problem.space.key(job.config), None)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        self.algorithm.tell(outcomes)
        if self._settling is not None:
            self._settling.tell(outcomes)
        for job, outcome in outcomes:
            if job.kind == "sensitivity":
                self._table_told = True
                if not isinstance(outcome, Failure):
                    self._table = outcome.attributes["table"]
        if self._settling is not None and self._settling.done:
            self._settled, self._settling = self._settling.best, None
            self._later(self._settled)
        if self._settling is None and self._table is not None:
            self._plan(knapsack_baselines(self.problem, self._table, self._baselines, self._settled))
            self._table = None

    def settings(self) -> dict[str, Any]:
        return self.algorithm.settings()

    def _first(self) -> Settling | None:
        """What settles the decisions that come first; None if there are none, or the first baseline may not be."""
        if not self.problem.first or self._settled is None or not self.within_known_bounds(self._settled):
            return None
        found = Settling()
        found.start(self.problem, self.seed)
        return found

    def _later(self, settled: Config) -> None:
        """Take up the baselines that go on from what was settled."""
        later = self.problem.later_baselines(settled)
        found = {name: self.problem.space.validate(config) for name, config in later.items()}
        self._baselines |= found
        self._plan(found.items())

    def _plan(self, baselines: Iterable[tuple[str, Config]]) -> None:
        """Take up baselines: each candidate once, and none that is known to violate a constraint."""
        for label, config in baselines:
            if not self.seen(config) and self.within_known_bounds(config):
                self._planned.setdefault(self.problem.space.key(config), (label, config))

    def _tabled(self) -> bool:
        problem = self.problem
        wanted = problem.sensitivity is not None and bool(problem.space.discrete.any())
        return wanted and isinstance(problem, HasSensitivities) and isinstance(problem, HasCosts)


def knapsack_baselines(
    problem: Problem, table: list[list[float]], baselines: Mapping[str, Config], like: Config | None
) -> Iterator[tuple[str, Config]]:
    """The exact knapsack at the cost of every baseline, and half way between neighbours.

    Extremes are left out, and what lies next to another. Numbers, and decisions that come `first`, stay as in `like`.
    """
    assert isinstance(problem, HasCosts)
    knapsack, names = Knapsack(table, problem.costs()), discrete_names(problem)
    priced = sorted(
        (knapsack.cost([int(problem.space[n].encode(config[n]) - problem.space[n].lower) for n in names]), name)
        for name, config in baselines.items()
    )
    budgets = {cost: f"knapsack at {name}" for cost, name in priced}
    for (cost, name), (above, other) in pairwise(priced):
        budgets.setdefault((cost + above) // 2, f"knapsack between {name} and {other}")
    settled = {} if like is None else {name: like[name] for name in problem.first}
    kept, least = [knapsack.least, knapsack.most], APART * (knapsack.most - knapsack.least)
    for budget in budgets:
        if min(abs(budget - other) for other in kept) > least:
            kept.append(budget)
    for budget in sorted(kept[2:]):
        yield budgets[budget], {**configuration(problem, knapsack.at(budget), like), **settled}


def discrete_names(problem: Problem) -> list[str]:
    """The decisions that tables speak of: the discrete variables, in the space's order."""
    return [name for name, variable in problem.space.items() if variable.discrete]


def configuration(problem: Problem, choice: Sequence[int] | np.ndarray[Any, Any], like: Config | None = None) -> Config:
    """The configuration of a choice for each discrete decision [d], with the numbers of another where there are any."""
    space = problem.space
    codes = space.lower.copy() if like is None else space.encode(like)
    codes[space.discrete] = np.asarray(choice, dtype=float) + space.lower[space.discrete]
    return space.decode(codes)
