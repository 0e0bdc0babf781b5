"""How every study opens, whatever its algorithm: baselines, what is settled first, and exact knapsacks on a table."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np

from moopt.algorithms.base import Algorithm
from moopt.algorithms.settling import Settling
from moopt.budgets import Knapsack
from moopt.jobs import Failure, Job, Outcome
from moopt.preference import Preference
from moopt.problem import HasCosts, HasResources, HasSensitivities, Problem, configurations
from moopt.space import Config

logger = logging.getLogger("moopt")

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
        self._baselines = configurations(problem, "baselines", problem.baselines())
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
        if self._settling is not None:
            found = self._settling.ask(n)
            if found or self._settling.waiting:
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
        """What settles the decisions that come first; None if there are none, or nothing is within the bounds.

        The others are as in the first baseline, or where bounds forbid that as in the dearest that they allow.
        """
        first, problem = self.problem.first, self.problem
        if not first or self._settled is None:
            return None
        later = configurations(problem, "later_baselines", problem.later_baselines(self._settled))
        allowed = [config for config in (self._settled, *later.values()) if self.within_known_bounds(config)]
        if not allowed:
            logger.info("%s are not settled first: no baseline is within the bounds.", ", ".join(first))
            return None
        fixed = allowed[0] if allowed[0] is self._settled else max(allowed, key=self._cost)
        self._plan(
            (label, {**fixed, **{name: config[name] for name in first}}) for label, config in self._baselines.items()
        )
        found = Settling(fixed, self.preference)
        found.start(problem, self.seed)
        return found

    def _cost(self, config: Config) -> float:
        """What a configuration costs by the problem's table; 0 without one."""
        if not isinstance(self.problem, HasCosts):
            return 0.0
        choice = _choice(self.problem, config)
        return float(self.problem.costs()[np.arange(len(choice)), choice].sum())

    def _later(self, settled: Config) -> None:
        """Take up the baselines that go on from what was settled."""
        found = configurations(self.problem, "later_baselines", self.problem.later_baselines(settled))
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
    """The exact knapsack at the cost of every baseline, and half way between neighbours: of all, and of each kind.

    Where one kind is bounded all others are free. Extremes are left out, and what lies next to another. Numbers, and
    decisions that come `first`, stay as in `like`.
    """
    assert isinstance(problem, HasCosts)
    yield from _knapsacks(problem, Knapsack(table, problem.costs()), "knapsack", baselines, like)
    if isinstance(problem, HasResources):
        for kind, costs in problem.resources().items():
            yield from _knapsacks(problem, Knapsack(table, costs), f"knapsack of {kind}", baselines, like)


def _knapsacks(
    problem: Problem, knapsack: Knapsack, called: str, baselines: Mapping[str, Config], like: Config | None
) -> Iterator[tuple[str, Config]]:
    priced = sorted((knapsack.cost(_choice(problem, config)), name) for name, config in baselines.items())
    budgets = {cost: f"{called} at {name}" for cost, name in priced}
    for (cost, name), (above, other) in pairwise(priced):
        budgets.setdefault((cost + above) // 2, f"{called} between {name} and {other}")
    settled = {} if like is None else {name: like[name] for name in problem.first}
    kept, least = [knapsack.least, knapsack.most], APART * (knapsack.most - knapsack.least)
    for budget in budgets:
        if min(abs(budget - other) for other in kept) > least:
            kept.append(budget)
    for budget in sorted(kept[2:]):
        yield budgets[budget], {**configuration(problem, knapsack.at(budget), like), **settled}


def _choice(problem: Problem, config: Config) -> np.ndarray[Any, Any]:
    """The option of each discrete decision in a configuration, [d]."""
    space = problem.space
    found: np.ndarray[Any, Any] = (space.encode(config) - space.lower)[space.discrete].astype(np.int64)
    return found


def discrete_names(problem: Problem) -> list[str]:
    """The decisions that tables speak of: the discrete variables, in the space's order."""
    return [name for name, variable in problem.space.items() if variable.discrete]


def configuration(problem: Problem, choice: Sequence[int] | np.ndarray[Any, Any], like: Config | None = None) -> Config:
    """The configuration of a choice for each discrete decision [d], with the numbers of another where there are any."""
    space = problem.space
    codes = space.lower.copy() if like is None else space.encode(like)
    codes[space.discrete] = np.asarray(choice, dtype=float) + space.lower[space.discrete]
    return space.decode(codes)
