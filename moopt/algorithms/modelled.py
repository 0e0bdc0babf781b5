"""What algorithms share that search by a model: a surrogate of everything measured, fitted anew as the data grows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moopt.acquisition import Beliefs, Known, Proposals
from moopt.algorithms.base import Algorithm, positive, switch
from moopt.errors import SurrogateError
from moopt.jobs import Failure, Job, Outcome
from moopt.one_thread import one_thread
from moopt.problem import Evaluation, HasRepair, Problem, counted
from moopt.space import Config
from moopt.surrogates import Data, Surrogate, features, fit, paired

logger = logging.getLogger("moopt")

FloatArray = npt.NDArray[np.float64]

REFIT = 1.1
"""Hyperparameters are fitted again when the data has grown by this factor; with numbers, after every trial."""
SAME = 1e-6
"""Numbers that differ by less than this share of their range are the same to a search."""
HARDLY = 1e-9
"""What a promise counts where an evaluation is likelier to fail than not."""
REACH, TRUST = 0.05, 0.1
"""How far a failure says something, as a share of the space's diagonal, and how much success is expected beforehand."""
NOISE = 0.02
"""The share of an objective's range from which the error of a measured value is taken into account."""

NINETY_FIVE = 1.96
"""Standard deviations to each side of a normal number's mean that hold 95% of it."""


class Modelled(Algorithm):
    """Has a surrogate of every measured objective and constraint (see `moopt.surrogates`); known ones need none.

    Args:
        initial: Trials before a surrogate is fitted, those a study opens with included; None: as the space needs.
        prior: Whether the problem's sensitivities are a prior of the first measured objective.
    """

    relaxed = False
    """Whether levels are taken for numbers."""

    def __init__(self, initial: int | None = None, prior: bool = True) -> None:
        self.initial = None if initial is None else positive("initial", initial)
        self.prior = switch("prior", prior)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        space = problem.space
        usual = 8 if space.discrete.all() else min(2 * len(space), 20)
        self._initial = min(self.initial or usual, max(3, int(min(space.size, 1e6)) // 2))
        self._known, self._proposals = Known(problem), Proposals(problem, relaxed=self.relaxed)
        self._features = features(problem)
        self._table: FloatArray | None = None
        self._pending: dict[int, FloatArray] = {}
        self._failed: list[FloatArray] = []
        self._issued_rows: set[bytes] = set()
        self._fitted: dict[str, tuple[int, Surrogate]] = {}
        self._beliefs: tuple[int, Beliefs | None] | None = None

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if job.kind == "evaluate":
                row = self.problem.space.encode(job.config)
                self._pending[job.trial] = row
                self._issued_rows.add(row.tobytes())

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, outcome in outcomes:
            self._pending.pop(job.trial, None)
            if job.kind == "evaluate" and isinstance(outcome, Failure):
                self._failed.append(self.problem.space.encode(job.config))
            if job.kind == "sensitivity" and isinstance(outcome, Evaluation) and self.prior:
                self._table = np.array(outcome.attributes["table"])

    @one_thread()
    def believed(self) -> FloatArray | None:
        archive = self.archive
        if not len(archive) or not self._uncertain(np.array(archive.values)):
            return None
        beliefs = self.beliefs()
        return None if beliefs is None else beliefs.expected(np.array(archive.codes))

    def _scattered(self, rng: np.random.Generator) -> Iterator[Config]:
        """Candidates without end, spread over the space."""
        while True:
            yield from map(self.problem.space.decode, self._proposals.spread(64, rng))

    def beliefs(self) -> Beliefs | None:
        """Beliefs from what was told; None before there is enough, and if no surrogate can be fitted, which is said."""
        n = len(self.archive)
        if n < self._initial:
            return None
        if self._beliefs is None or self._beliefs[0] != n:
            try:
                surrogates = {name: self._surrogate(name) for name in self._measured()}
                self._beliefs = n, Beliefs(self.problem, self._known, surrogates, self.archive.outside)
            except SurrogateError as error:
                logger.warning("%s goes on without a model for now: %s", type(self).__name__, error)
                self._beliefs = n, None
        return self._beliefs[1]

    def foretold(self, jobs: Sequence[Job], beliefs: Beliefs) -> list[Job]:
        """The jobs, each with what is believed of its measured objectives in its note, for who asks how true that was.

        `note["predicted"]` has, by objective, its median and what 95% of the belief lies between: [low, median, high].
        """
        rows = np.array([self.problem.space.encode(job.config) for job in jobs])
        told: list[dict[str, list[float]]] = [{} for _ in jobs]
        for objective in (o for o in self.problem.objectives if o.name in beliefs.surrogates and jobs):
            surrogate = beliefs.surrogates[objective.name]
            mean, covariance = surrogate.posterior(rows)
            spread = NINETY_FIVE * np.sqrt(np.maximum(np.diag(covariance), 0.0))
            values = objective.sign * surrogate.values(np.stack([mean - spread, mean, mean + spread], axis=1))
            for place, found in enumerate(np.sort(values, axis=1)):
                if np.isfinite(found).all():
                    told[place][objective.name] = [float(f"{value:.6g}") for value in found]
        return [replace(job, note={**job.note, "predicted": each}) for job, each in zip(jobs, told, strict=True)]

    def _measured(self) -> list[str]:
        """The objectives and constraints that are not known."""
        problem = self.problem
        names = [*(objective.name for objective in problem.objectives), *(each.name for each in problem.constraints)]
        return [name for name in dict.fromkeys(names) if name not in self._known.names]

    def _told(self, name: str, n: int) -> Data:
        """What the first n trials told of an objective or a constraint: of nothing later, whenever that is asked."""
        archive, problem = self.archive, self.problem
        codes, objectives = np.array(archive.codes[:n]), [objective.name for objective in problem.objectives]
        if name in objectives:
            values = np.array(archive.values[:n])[:, objectives.index(name)]
            return Data.of(codes, values, self._variances(n)[:, objectives.index(name)])
        k = [constraint.name for constraint in problem.constraints].index(name)
        return Data(codes, np.array(archive.excess[:n])[:, k] + problem.constraints[k].bound)

    def _variances(self, n: int) -> FloatArray:
        """The variances [n, m] of what distinguishes the values of the first n trials."""
        archive = self.archive
        values, variances = np.array(archive.values[:n]), np.array(archive.variances[:n])
        if len({job.fidelity for job in archive.jobs[:n]}) == 1:  # all on the same sequences
            for j, objective in enumerate(self.problem.objectives):
                samples = [each.get(objective.name) for each in archive.samples[:n]]
                variances[:, j] = paired(values[:, j], variances[:, j], samples)
        return variances

    def _surrogate(self, name: str) -> Surrogate:
        """The surrogate of one number: fitted when the data has grown enough, conditioned on the rest."""
        n, space, whole = self._initial, self.problem.space, len(self.archive)
        growth = REFIT if space.discrete.all() else 1.0
        while (larger := max(n + 1, int(n * growth))) <= whole:
            n = larger
        if self._fitted.get(name, (0, None))[0] != n:
            first = next((o.name for o in self.problem.objectives if o.name not in self._known.names), None)
            prior = self._table if name == first else None
            self._fitted[name] = n, fit(self._told(name, n), space, prior, self._features, not self.relaxed)
        surrogate = self._fitted[name][1]
        if n == whole:
            return surrogate
        data = self._told(name, whole)
        try:
            return surrogate.conditioned(data)
        except ValueError:  # a value came that this kind of surrogate cannot have, or its covariance has no factor
            return fit(data, space, None, self._features, not self.relaxed)

    def _fresh(self, pool: FloatArray, beside: list[FloatArray]) -> FloatArray:
        """The rows of a pool that may be evaluated: repaired, different, never issued, within the known bounds."""
        space, problem = self.problem.space, self.problem
        if isinstance(problem, HasRepair):
            rng = self.rng()
            pool = np.array([space.encode(problem.repair(space.decode(row), rng)) for row in pool])
        taken = {row.tobytes() for row in beside}
        rows = {key: row for row in pool if (key := row.tobytes()) not in self._issued_rows and key not in taken}
        found = self._apart(np.array(list(rows.values())).reshape(-1, pool.shape[1]))
        if not len(found):
            return pool[:0]
        exact = self._known.values(found)
        allowed = np.isfinite(list(exact.values())).all(axis=0) & np.ones(len(found), dtype=bool)
        for constraint in problem.constraints:
            if constraint.name in exact:
                allowed &= constraint.excess(exact[constraint.name]) <= 0
        return found[allowed]

    def _apart(self, rows: FloatArray) -> FloatArray:
        """Those of rows [n, d] that are not the same as one that was issued but for the last digits of numbers."""
        if self.problem.space.discrete.all() or not self._issued_rows or not len(rows):
            return rows
        issued = np.array([np.frombuffer(row) for row in self._issued_rows])
        distance = (
            np.abs(self.problem.space.units(rows)[:, None] - self.problem.space.units(issued)[None])
            .max(axis=2)
            .min(axis=1)
        )
        found: FloatArray = rows[distance > SAME]
        return found

    def _success(self, rows: FloatArray) -> FloatArray:
        """How likely the evaluation of each of rows [n, d] succeeds, [n], by what failed nearby and what did not.

        Where it is likelier to fail, next to 0: the more a model promises there, the longer a search would stay.
        """
        if not self._failed:
            return np.ones(len(rows))
        reach = REACH * np.sqrt(rows.shape[1])

        def near(others: list[FloatArray]) -> FloatArray:
            squares = (
                (self.problem.space.units(rows)[:, None] - self.problem.space.units(np.array(others))[None]) ** 2
            ).sum(axis=2)
            found: FloatArray = np.exp(-0.5 * squares / reach**2).sum(axis=1)
            return found

        good = TRUST + (near(self.archive.codes) if self.archive.codes else 0.0)
        likely = good / (good + near(self._failed))
        found: FloatArray = np.where(likely < 0.5, HARDLY * likely, likely)
        return found

    def _uncertain(self, values: FloatArray) -> bool:
        """Whether errors of measured values are large enough to hide what is on the front."""
        given = self._variances(len(values))
        spread = np.ptp(values, axis=0)
        errors = np.sqrt(np.nanmedian(np.where(np.isnan(given).all(axis=0), 0.0, given), axis=0))
        return bool((errors > NOISE * spread).any())

    def _counted(self, values: FloatArray) -> FloatArray:
        """Values [..., m] on the scales of the objectives."""
        return counted(values, self.problem.objectives)

    def _rows(self, indices: npt.NDArray[np.int64]) -> FloatArray:
        return np.array([self.archive.codes[i] for i in indices]).reshape(len(indices), len(self.problem.space))
