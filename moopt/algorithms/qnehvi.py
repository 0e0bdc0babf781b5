"""qNEHVI: Bayesian optimisation of the front, by the expected hypervolume improvement of discrete candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.acquisition import Beliefs, CurveImprovement, Improvement, Matches, climbed
from moopt.algorithms.base import switch
from moopt.algorithms.modelled import Modelled
from moopt.jobs import Job
from moopt.one_thread import one_thread
from moopt.problem import HasCosts, Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]

DRAWS, DRAWN_TABLES, TRADE_OFFS = 64, 24, 24
"""Draws of the posterior; tables among them that are optimised exactly, each for so many trade-offs."""
NORMALS = np.linspace(-6.0, 6.0, 97)
WEIGHTS = np.exp(-0.5 * NORMALS**2) / np.exp(-0.5 * NORMALS**2).sum()
"""Where an expectation over a normal number is taken without draws: far into the tails, for what hardly ever is."""
MANY_OBJECTIVES, FEWER_DRAWS = 4, 16
"""With so many objectives a draw takes long, and fewer are made."""
POOL, BEST = 400, 8
"""Candidates of the first round, and how many of them the next round looks around."""
ROUNDS_OF_STEPS, ROUNDS_OF_NUMBERS = 2, 5
"""How many rounds follow the first: in a discrete space, and where numbers have to settle."""
STARTS = 4
"""From how many of the best the slope of an exact expectation is followed, where there are numbers."""
MANY_DECISIONS = 64
"""So many decisions have a candidate for nearly every cost."""
WITHIN = 0.1
"""How far the nearest point lies within a reference point that had to be moved, as a share of the front's range."""
LARGEST_FRONT = 64
"""How many measured points of a noisy front are drawn again."""


class QNEHVI(Modelled):
    """Noisy expected hypervolume improvement (Daulton, Balandat and Bakshy 2021), in batches, over the space itself.

    Every measured objective and constraint has a surrogate of its own (see `moopt.surrogates`), known ones have none.
    The improvement is averaged over joint draws of the candidates, of what is pending and, where values are noisy, of
    the front. Candidates are never rounded: they are optima of drawn tables where the objectives add up over the
    decisions, steps towards those, and variations of the front, looked around in a few rounds.

    Args:
        initial: Trials before a surrogate is fitted, those a study opens with included; None: as the space needs.
        prior: Whether the problem's sensitivities are a prior of the first measured objective.
        trust_region: Whether steps of a few changes towards the optima are looked at beside the optima.
        rounding: Take levels for numbers, model and search those, and round what is found: what most tools do, and
            worse. It is there to be compared with.
    """

    def __init__(
        self, initial: int | None = None, prior: bool = True, trust_region: bool = True, rounding: bool = False
    ) -> None:
        super().__init__(initial, prior)
        self.trust_region = switch("trust_region", trust_region)
        self.rounding = self.relaxed = switch("rounding", rounding)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        steps = bool(problem.space.discrete.all()) and not self.rounding
        self._rounds = ROUNDS_OF_STEPS if steps else ROUNDS_OF_NUMBERS
        self._cost = self._reachable_cost()
        self._matches = None if self._cost is None else Matches(problem)
        self._reference: FloatArray | None = None

    @one_thread()
    def ask(self, n: int) -> list[Job]:
        rng = self.rng()
        if not (beliefs := self.beliefs()):
            return self.jobs(self.unseen(self._scattered(rng), n, rng))
        reference = self._corner()
        chosen: list[Config] = []
        rows, front = list(self._pending.values()), self._front(beliefs, reference)
        for _ in range(n):
            found = self._next(beliefs, front, rows, rng)
            if found is None:
                break
            chosen.append(found)
            rows.append(self.problem.space.encode(found))
        return self._noted(self.foretold(self.jobs(chosen), beliefs), reference)

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if "reference" in job.note:
                self._reference = np.array(job.note["reference"])

    @one_thread()
    def settle(self) -> None:
        """Keep the reference point that the present trials say, once there is a model of them."""
        if self._reference is None and self.beliefs() is not None:
            self._reference = self._corner()

    def _noted(self, jobs: list[Job], reference: FloatArray) -> list[Job]:
        """The jobs, with the reference point if it is not stored yet."""
        if self._reference is not None or not jobs:
            return jobs
        return [replace(jobs[0], note={**jobs[0].note, "reference": reference.tolist()}), *jobs[1:]]

    def _corner(self) -> FloatArray:
        """The reference point [m]: declared, else inferred once.

        From the baselines a study opens with as `moopt.pareto.reference_point` does; without any from the worst of the
        first trials: their front would leave out the ends of the one that is looked for.
        """
        if self._reference is not None:
            return self._reference
        declared = [None if o.reference is None else o.reference * o.sign for o in self.problem.objectives]
        archive = self.archive
        feasible = [i for i, violation in enumerate(archive.broken) if violation <= 0] or range(len(archive))
        values = np.array([archive.values[i] for i in feasible])
        opening = np.array([archive.jobs[i].label is not None for i in feasible])
        if opening.any():
            return pareto.reference_point(values[opening], declared)
        return np.array([w if d is None else d for w, d in zip(values.max(axis=0), declared, strict=True)])

    def _reachable_cost(self) -> int | None:
        """Which objective is a known cost that nearly every amount of can be had; None if none is, or one of many."""
        known = [j for j, objective in enumerate(self.problem.objectives) if objective.known]
        other = [o for o in self.problem.objectives if not o.known]
        tabled = self._known.tables is not None and isinstance(self.problem, HasCosts) and not self.rounding
        tabled &= len(self.problem.space) >= MANY_DECISIONS and bool(self.problem.space.discrete.all())
        return known[0] if tabled and len(known) == len(other) == 1 and other[0].scale == "log" else None

    def _next(
        self, beliefs: Beliefs, front: _Front, beside: list[FloatArray], rng: np.random.Generator
    ) -> Config | None:
        """The new candidate that improves most beside what is pending; None when nothing is left."""
        aim = self._aim(beliefs, front, beside)
        pool = self._first_pool(beliefs, front.parents, rng)
        best: list[tuple[float, FloatArray]] = []
        for later in range(self._rounds + 1):
            pool = self._fresh(pool, beside)
            if len(pool):
                scores = self._scored(beliefs, aim, pool, rng)
                best = _best([*best, *zip(scores.tolist(), pool, strict=True)])
            if not best:
                break
            pool = self._around(np.array([row for _, row in best]), 0.1 * 0.4**later, rng)
        if best and aim.exact is not None and not self.problem.space.discrete.all():
            starts = np.array([row for _, row in best[:STARTS]])
            higher = climbed(lambda rows: self._scored(beliefs, aim, rows, rng), starts, self.problem.space)
            pool = self._fresh(higher, beside)
            scores = self._scored(beliefs, aim, pool, rng) if len(pool) else np.empty(0)
            best = _best([*best, *zip(scores.tolist(), pool, strict=True)])
        pool = self._matched(beliefs, [row for _, row in best], beside, rng)
        if len(pool):
            scores = self._scored(beliefs, aim, pool, rng)
            best = _best([*zip(scores.tolist(), pool, strict=True)])
        taken = {row.tobytes() for row in beside}
        for _, row in best:
            found = self.problem.space.decode(row)
            if not self.within_known_bounds(found):  # tables of what is known may be wrong for a few
                continue
            if not self.rounding or not (self.seen(found) or self.problem.space.encode(found).tobytes() in taken):
                return found
        left = self.unseen(self._scattered(rng), len(beside) + 1, rng)
        return next((c for c in left if self.problem.space.encode(c).tobytes() not in taken), None)

    def _matched(
        self, beliefs: Beliefs, best: list[FloatArray], beside: list[FloatArray], rng: np.random.Generator
    ) -> FloatArray:
        """For every second candidate, what is best at the costs of the opening's trials; none where costs are few."""
        opening = [place for place, job in enumerate(self.archive.jobs) if job.label is not None]
        if self._matches is None or not best or not opening or (self.next_trial + len(beside)) % 2:
            return np.empty((0, len(self.problem.space)))
        tables = beliefs.tables(1, rng)
        assert tables is not None
        return self._fresh(self._matches.of(tables[0], np.array(best), self._rows(np.array(opening))), beside)

    def _first_pool(self, beliefs: Beliefs, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        proposals = self._proposals
        pools = [proposals.varied(parents, POOL // 2, 0.1, rng)]
        tables = beliefs.tables(DRAWN_TABLES, rng)
        if tables is None:
            pools += [proposals.spread(POOL // 4, rng), proposals.varied(parents, POOL // 4, 0.3, rng)]
        else:
            goals = np.unique(proposals.optima(tables, TRADE_OFFS, parents, rng), axis=0)
            goals = goals[rng.permutation(len(goals))[:POOL]]
            pools.append(goals)
            if self.trust_region:
                pools.append(proposals.approached(goals, parents, rng))
        return np.vstack(pools)

    def _around(self, rows: FloatArray, scale: float, rng: np.random.Generator) -> FloatArray:
        """What the next round looks at: neighbours of the best and their variations."""
        near = [self._proposals.neighbours(row, POOL // 2 // len(rows), rng) for row in rows]
        return np.vstack([*near, self._proposals.varied(rows, POOL // 4, scale, rng)])

    def _front(self, beliefs: Beliefs, reference: FloatArray) -> _Front:
        """What is to be improved on."""
        archive = self.archive
        values, violations = np.array(archive.values), np.array(archive.broken)
        if uncertain := self._uncertain(values):  # what was measured as the front is what was lucky
            values = beliefs.expected(np.array(archive.codes))
        feasible = np.flatnonzero(violations <= 0)
        if not len(feasible):
            nearest = np.argsort(violations, kind="stable")[:BEST]
            return _Front(self._rows(nearest), values[:0], reference, nearest[:0])
        ranks = pareto.ranks(values[feasible])
        on = feasible[ranks == 0]
        if not (values[on] < reference).all(axis=1).any():
            reference = _moved(reference, values[on])
        again = feasible[np.argsort(ranks, kind="stable")][:LARGEST_FRONT] if uncertain else on[:0]
        return _Front(self._rows(np.array(archive.least_violating(on.tolist()))), values[on], reference, again)

    def _aim(self, beliefs: Beliefs, front: _Front, beside: list[FloatArray]) -> _Aim:
        """What is to be improved on beside what is pending, prepared for all candidates."""
        alone = len(front.reference) <= 2 and not beside and not len(front.again) and len(front.values) > 0
        if alone and not self.problem.constraints and self.archive.region is None and self._cost is None:
            exact = Improvement(self._counted(front.values[None]), self._counted(front.reference))
            return _Aim(front, beside, None, exact)
        fixed = self._fixed(beliefs, front, beside) if len(front.reference) > 2 else None
        return _Aim(front, beside, fixed, None)

    def _fixed(self, beliefs: Beliefs, front: _Front, beside: list[FloatArray]) -> Improvement:
        """The improvement on one front for all draws, at the means of what is uncertain: many objectives take long."""
        rows = [*beside, *self._rows(front.again)]
        values = front.values[:0] if len(front.again) else front.values
        if rows:
            values = np.vstack([values, beliefs.expected(np.array(rows))])
        return Improvement(self._counted(values[None]), self._counted(front.reference))

    def _improvement(self, fronts: FloatArray, reference: FloatArray) -> Improvement | CurveImprovement:
        """Over the points of fronts [s, n, m], or over the line through them where all between them is reachable."""
        if self._cost is None:
            return Improvement(fronts, reference)
        return CurveImprovement(fronts, reference, self._cost)

    def _scored(self, beliefs: Beliefs, aim: _Aim, pool: FloatArray, rng: np.random.Generator) -> FloatArray:
        """What each candidate of a pool [n, d] is expected to add, [n], where its evaluation may fail."""
        return self._gains(beliefs, aim, pool, rng) * self._success(pool)

    def _gains(self, beliefs: Beliefs, aim: _Aim, pool: FloatArray, rng: np.random.Generator) -> FloatArray:
        """What each candidate of a pool [n, d] is expected to add, [n]."""
        if aim.exact is not None:
            return aim.exact.expected(self._counted(beliefs.spread(pool, NORMALS)), WEIGHTS)
        front, fixed = aim.front, aim.fixed
        others = [] if fixed else [*aim.beside, *self._rows(front.again)]
        draws = DRAWS if len(front.reference) < MANY_OBJECTIVES else FEWER_DRAWS
        values, excess = beliefs.drawn(np.vstack([*others, pool]), draws, rng)
        feasible: npt.NDArray[np.bool_] = np.all(excess <= 0, axis=2)
        split = len(others)
        if not len(front.values):
            short = np.maximum(excess[:, split:], 0).sum(axis=2).mean(axis=0) / (1 + np.abs(excess).max())
            nearest: FloatArray = feasible[:, split:].mean(axis=0) - short
            return nearest
        if fixed is None:
            drawn = np.where(feasible[:, :split, None], values[:, :split], front.reference)
            sure = front.values[:0] if len(front.again) else front.values
            shared = drawn if split else drawn[:1]
            fronts = np.hstack([np.repeat(sure[None], len(shared), axis=0), shared])
            fixed = self._improvement(self._counted(fronts), self._counted(front.reference))
        gains: FloatArray = fixed.of(self._counted(values[:, split:])) * feasible[:, split:]
        found: FloatArray = gains.mean(axis=0)
        return found


class _Front(NamedTuple):
    """What is to be improved on.

    Attributes:
        parents: The candidates on it and in the region, [p, d]; without a feasible one those that exceed constraints
            least.
        values: Their measured values, or what is believed of them where those are uncertain, [p, m].
        reference: Where volume ends, [m].
        again: The archive's indices of measured candidates that are drawn again, because their values are uncertain.
    """

    parents: FloatArray
    values: FloatArray
    reference: FloatArray
    again: npt.NDArray[np.int64]


class _Aim(NamedTuple):
    """What candidates are scored against.

    Attributes:
        front: What is to be improved on.
        beside: What is pending, or chosen already.
        fixed: The improvement over one front for all draws; None where each draw has a front of its own.
        exact: The improvement where its expectation needs no draws: all is known but the candidate, and its objectives
            are independent.
    """

    front: _Front
    beside: list[FloatArray]
    fixed: Improvement | CurveImprovement | None
    exact: Improvement | None


def _moved(reference: FloatArray, front: FloatArray) -> FloatArray:
    """The reference point [m], moved away until what comes nearest to it of a front [n, m] lies a little within it.

    Until something lies within the declared one, improving on that is the way there; ends of the front are not.
    """
    span = pareto.reference_point(front) - front.min(axis=0)
    needed = ((front - reference) / span).max(axis=1).min()
    found: FloatArray = reference + (needed + WITHIN) * span
    return found


def _best(scored: list[tuple[float, FloatArray]]) -> list[tuple[float, FloatArray]]:
    """The best few, each candidate once."""
    found: dict[bytes, tuple[float, FloatArray]] = {}
    for score, row in sorted(scored, key=lambda pair: -pair[0]):
        found.setdefault(row.tobytes(), (score, row))
        if len(found) == BEST:
            break
    return list(found.values())
