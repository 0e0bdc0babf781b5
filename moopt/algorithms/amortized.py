"""MAP: amortized Pareto fronts, of quadratic models that a few evaluations are enough for (Li et al. 2024)."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3
from pymoo.core.problem import Problem as PymooProblem
from pymoo.optimize import minimize
from scipy.stats import qmc

from moopt import pareto
from moopt.acquisition import Known
from moopt.algorithms.base import positive
from moopt.algorithms.nsga3 import directions
from moopt.algorithms.rounds import Rounds
from moopt.errors import SurrogateError
from moopt.problem import Problem
from moopt.quadratics import Quadratic, fit, leverage, terms
from moopt.space import Config

logger = logging.getLogger("moopt")

FloatArray = npt.NDArray[np.float64]

POPULATION, GENERATIONS = 100, 25
"""Of NSGA-III on the models, as in the paper."""
PICKS = 10
"""Candidates that a round evaluates with two objectives: few, as what they tell corrects the models of the next."""
WORST = 1e100
"""What stands for the values of a candidate that nothing is known of."""
FEWEST = 3
"""With fewer trials there is nothing to fit."""
DRAWN = 256
"""Points of which the one is sampled that the samples before say least of."""
MOST_TERMS = 300
"""With more coefficients that takes long, and samples are spread evenly."""
TRUSTED = 0.8
"""The R^2 on new candidates from which a model is trusted."""


class MAP(Rounds):
    """Fits a quadratic to every measured objective, searches these for the front, and evaluates what it finds.

    A quadratic of d variables has (d + 1)(d + 2) / 2 coefficients; twice as many trials come first, each where those
    before say least of a quadratic (a greedy D-optimal design), the ones a study opens with counted. Accuracies may go
    through a sigmoid, positive losses through a softplus, where that predicts better. The models are searched by
    NSGA-III within the space, the constraints and the region that is preferred, and their front is evaluated, which
    tells how good they are: `fits` has the R^2 of every model on candidates that it was not fitted to, and a warning is
    logged below 0.8. What was evaluated improves the models for the next round.

    From arXiv:2406.07529. It is for a few real numbers, such as merging coefficients; levels are taken for numbers.

    Args:
        samples: Trials before the first model; None: twice the coefficients.
        picks: Candidates of the models' front that a round evaluates; None: 10 with two objectives, twice as many with
            every further one.
    """

    def __init__(self, samples: int | None = None, picks: int | None = None) -> None:
        self.samples = None if samples is None else positive("samples", samples)
        self.picks = None if picks is None else positive("picks", picks)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._count = self.samples or 2 * terms(len(problem.space))
        self._picked = self.picks or min(PICKS * 2 ** max(len(problem.objectives) - 2, 0), POPULATION)
        self._distrusted: set[str] = set()
        self.known = Known(problem)

    def plan(self, rng: np.random.Generator) -> list[Config]:
        try:
            left = self._count - self.upcoming
            if left > 0 and (found := self.sampled(left, rng)):
                return found
            if len(self.archive) >= FEWEST and (found := self.unseen(iter(self._front(rng)), self._picked, rng)):
                return found
        except SurrogateError as error:
            logger.warning("%s goes on without a model for now: %s", type(self).__name__, error)
        return self.unseen(self.scattered(rng), self._picked, rng)

    def sampled(self, left: int, rng: np.random.Generator) -> list[Config]:
        """The next samples, at most `left`, for the models to be fitted to."""
        return self.unseen(self.telling(rng), left, rng)

    def telling(self, rng: np.random.Generator) -> Iterator[Config]:
        """Points without end, each of some drawn the one of which those before say least."""
        d = len(self.problem.space)
        if terms(d) > MOST_TERMS:
            return self.scattered(rng)
        return self.least_known(lambda: rng.random((DRAWN, d)))

    def least_known(self, draw: Callable[[], FloatArray]) -> Iterator[Config]:
        """Of the points [n, d] of each draw the one of which all others, told or under way, say least: without end."""
        d = len(self.problem.space)
        known = self.unit(np.array([self.problem.space.encode(each) for each in self.asked()]).reshape(-1, d))
        while True:
            points = draw()
            best = points[int(leverage(points, known).argmax())]
            known = np.vstack([known, best])
            yield self.config(best)

    def scattered(self, rng: np.random.Generator) -> Iterator[Config]:
        """Points spread over the space, without end."""
        d = len(self.problem.space)
        while True:
            points = qmc.Sobol(d, rng=rng).random_base2(6) if d <= qmc.Sobol.MAXDIM else rng.random((64, d))
            yield from map(self.config, points)

    def fits(self) -> dict[str, float]:
        """The R^2 of every model of the samples on what was evaluated after them; NaN where that is too little.

        The variance is that of all that was told: what lies on one front hardly varies by itself.
        """
        sampled, told = self._count, len(self.archive)
        if told < sampled + FEWEST:
            return dict.fromkeys(self.measured, float("nan"))
        models, points = Models.of(self, sampled), self.units()[sampled:]
        found = {}
        for name in self.measured:
            every = self.told(name)
            missed = float(((models.of_name[name].mean(points) - every[sampled:]) ** 2).mean())
            found[name] = 1 - missed / float(every.var()) if every.var() > 0 else float("nan")
        return found

    @property
    def measured(self) -> list[str]:
        """The objectives that are modelled."""
        return [objective.name for objective in self.problem.objectives if not objective.known]

    def told(self, name: str) -> FloatArray:
        """What was measured of an objective, as it is and not with its sign turned, [n]."""
        place = [objective.name for objective in self.problem.objectives].index(name)
        found: FloatArray = np.array([v[place] for v in self.archive.values]) * self.problem.objectives[place].sign
        return found

    def _front(self, rng: np.random.Generator) -> list[Config]:
        """The front of the models, those first that add most volume to what was evaluated and to those before."""
        self._judge()
        models = Models.of(self, len(self.archive))
        m, d = len(self.problem.objectives), len(self.problem.space)
        looked: list[tuple[FloatArray, FloatArray, FloatArray]] = []

        class Predicted(PymooProblem):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(n_var=d, n_obj=m, n_ieq_constr=1, xl=0.0, xu=1.0)

            def _evaluate(self, x: FloatArray, out: dict[str, FloatArray], *args: object, **kwargs: object) -> None:
                values, broken = models.predicted(x)
                out["F"], out["G"] = values, broken[:, None]
                looked.append((x, values, broken))

        start = np.vstack([self.units()[-POPULATION:], rng.random((max(POPULATION - len(self.archive), 0), d))])
        minimize(
            Predicted(), PymooNSGA3(directions(m, POPULATION), pop_size=POPULATION, sampling=start),
            ("n_gen", GENERATIONS), seed=int(rng.integers(2**31)), copy_algorithm=False,
        )  # fmt: skip
        points, values, broken = (np.concatenate(each) for each in zip(*looked, strict=True))
        least = np.flatnonzero(broken <= max(float(broken.min()), 0.0))
        on = least[pareto.nondominated(values[least])]
        measured = np.array([self.archive.values[i] for i in self.archive.least_violating(range(len(self.archive)))])
        declared = [None if o.reference is None else o.reference * o.sign for o in self.problem.objectives]
        corner = pareto.reference_point(np.vstack([values[on], measured]), declared)
        order = most_volume(values[on], measured, corner, self._picked)
        return [self.config(points[on[place]]) for place in order]

    def _judge(self) -> None:
        """Say, once for every model, that it is not to be trusted."""
        for name, share in self.fits().items():
            if share < TRUSTED and name not in self._distrusted:
                self._distrusted.add(name)
                logger.warning(
                    "The quadratic model of %s has an R^2 of %.2f on new candidates: its front may be elsewhere. More "
                    "samples help where the landscape is smooth; qnehvi where it is not.", name, share,
                )  # fmt: skip


@dataclass(frozen=True)
class Models:
    """A quadratic of every measured objective and constraint.

    Attributes:
        of_name: By the name of the objective or constraint.
        search: Whose candidates.
    """

    of_name: dict[str, Quadratic]
    search: MAP

    @classmethod
    def of(cls, search: MAP, n: int) -> Models:
        """Fitted to the first n trials that were told.

        Raises:
            SurrogateError: one cannot be fitted.
        """
        points, archive = search.units()[:n], search.archive
        found = {name: fit(points, search.told(name)[:n]) for name in search.measured}
        for place, constraint in enumerate(search.problem.constraints):
            if constraint.name not in {*found, *search.known.names}:
                found[constraint.name] = Quadratic(points, np.array(archive.excess[:n])[:, place] + constraint.bound)
        return cls(found, search)

    def predicted(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Objectives [n, m], signs turned, at points [n, d] of the unit cube, and what speaks against each, [n].

        What is known is exact; a candidate that nothing is known of is infinitely bad.
        """
        problem, space = self.search.problem, self.search.problem.space
        codes = np.array([space.encode(self.search.config(point)) for point in points])
        found = {name: model.mean(points) for name, model in self.of_name.items()} | self.search.known.values(codes)
        values = np.column_stack([found[o.name] * o.sign for o in problem.objectives])
        broken = self.search.archive.outside(values)
        for constraint in problem.constraints:
            broken = broken + np.maximum(constraint.excess(found[constraint.name]), 0.0)
        unknown = np.isnan(values).any(axis=1) | np.isnan(broken)
        return np.where(unknown[:, None], WORST, values), np.where(unknown, WORST, broken)


def most_volume(values: FloatArray, beside: FloatArray, corner: FloatArray, count: int) -> list[int]:
    """The places of points [n, m] that add most hypervolume beside others [k, m], one after the other; then the rest.

    A point adds less, never more, the more is there: its last gain is a bound, and most are never looked at again.
    """
    front, order = beside, list[int]()
    volume = pareto.hypervolume(front, corner) if len(front) else 0.0
    bounds = [(-np.inf, place) for place in range(len(values))]
    while bounds and len(order) < count:
        _, place = heapq.heappop(bounds)
        gain = pareto.hypervolume(np.vstack([front, values[place]]), corner) - volume
        if bounds and gain < -bounds[0][0]:
            heapq.heappush(bounds, (-gain, place))
            continue
        order.append(place)
        front, volume = np.vstack([front, values[place]]), volume + gain
    taken = set(order)
    return order + [place for place in range(len(values)) if place not in taken]
