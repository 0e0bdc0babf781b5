"""MAP: amortized Pareto fronts, of quadratic models that a few evaluations are enough for (Li et al. 2024)."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3
from pymoo.core.problem import Problem as PymooProblem
from pymoo.optimize import minimize
from scipy.stats import qmc

from moopt import pareto
from moopt.algorithms.base import positive
from moopt.algorithms.nsga3 import directions
from moopt.algorithms.rounds import Rounds
from moopt.problem import Problem, known_values
from moopt.quadratics import Quadratic, determination, terms
from moopt.space import Config

logger = logging.getLogger("moopt")

FloatArray = npt.NDArray[np.float64]

POPULATION, GENERATIONS = 100, 25
"""Of NSGA-III on the models, as in the paper."""
PICKS = 20
FEWEST = 3
"""With fewer trials there is nothing to fit."""
TRUSTED = 0.8
"""The R^2 on new candidates from which a model is trusted."""


class MAP(Rounds):
    """Fits a quadratic to every measured objective, searches these for the front, and evaluates what it finds.

    A quadratic of d variables has (d + 1)(d + 2) / 2 coefficients; twice as many trials are spread over the space
    first, the ones a study opens with counted. Accuracies go through a sigmoid, positive losses through a softplus.
    The models are searched by NSGA-III within the space and their front is evaluated, which tells how good they are:
    `fits` has the R^2 of every model on candidates that it was not fitted to, and a warning is logged below 0.8. What
    was evaluated improves the models for the next round.

    From arXiv:2406.07529. It is for a few real numbers, such as merging coefficients; levels are taken for numbers.

    Args:
        samples: Trials before the first model; None: twice the coefficients.
        picks: Candidates of the models' front that a round evaluates; None: 20 with two objectives, twice as many with
            every further one.
    """

    def __init__(self, samples: int | None = None, picks: int | None = None) -> None:
        self.samples = None if samples is None else positive("samples", samples)
        self.picks = None if picks is None else positive("picks", picks)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._count = self.samples or 2 * terms(len(problem.space))
        self._picked = self.picks or min(PICKS * 2 ** max(len(problem.objectives) - 2, 0), POPULATION)
        self._fitted = 0

    def plan(self, rng: np.random.Generator) -> list[Config]:
        left = self._count - self.upcoming
        if left > 0 and (found := self.sampled(left, rng)):
            return found
        return self.unseen(iter(self._front(rng)), self._picked, rng) if len(self.archive) >= FEWEST else []

    def sampled(self, left: int, rng: np.random.Generator) -> list[Config]:
        """The next samples, at most `left`, for the models to be fitted to."""
        return self.unseen(self.scattered(rng), left, rng)

    def scattered(self, rng: np.random.Generator) -> Iterator[Config]:
        """Points spread over the space, without end."""
        d = len(self.problem.space)
        while True:
            points = qmc.Sobol(d, rng=rng).random_base2(6) if d <= qmc.Sobol.MAXDIM else rng.random((64, d))
            yield from map(self.config, points)

    def models(self) -> Models:
        """The present models of all that was told."""
        return Models.of(self, len(self.archive))

    def fits(self) -> dict[str, float]:
        """The R^2 of every model on what was evaluated after it was fitted; NaN where nothing was."""
        sampled = min(self._count, len(self.archive))
        if len(self.archive) <= sampled or sampled < FEWEST:
            return dict.fromkeys(self.measured, float("nan"))
        models, points = Models.of(self, sampled), self.units()[sampled:]
        return {n: determination(models.of_name[n].mean(points), self.told(n)[sampled:]) for n in self.measured}

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
        models, m, d = self.models(), len(self.problem.objectives), len(self.problem.space)
        looked: list[tuple[FloatArray, FloatArray]] = []

        class Predicted(PymooProblem):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(n_var=d, n_obj=m, xl=0.0, xu=1.0)

            def _evaluate(self, x: FloatArray, out: dict[str, FloatArray], *args: object, **kwargs: object) -> None:
                out["F"] = models.objectives(x)
                looked.append((x, out["F"]))

        start = np.vstack([self.units()[-POPULATION:], rng.random((max(POPULATION - len(self.archive), 0), d))])
        minimize(
            Predicted(), PymooNSGA3(directions(m, POPULATION), pop_size=POPULATION, sampling=start),
            ("n_gen", GENERATIONS), seed=int(rng.integers(2**31)), copy_algorithm=False,
        )  # fmt: skip
        points, values = (np.vstack(each) for each in zip(*looked, strict=True))
        on = np.flatnonzero(pareto.nondominated(values))
        measured = np.array(
            [v for v, broken in zip(self.archive.values, self.archive.broken, strict=True) if broken <= 0]
        )
        declared = [None if o.reference is None else o.reference * o.sign for o in self.problem.objectives]
        corner = pareto.reference_point(np.vstack([values[on], *measured]), declared)
        order = _most_volume(values[on], measured.reshape(-1, m), corner, self._picked)
        return [self.config(points[on[place]]) for place in order]

    def _judge(self) -> None:
        """Say, once a round, where a model is not to be trusted."""
        if len(self.archive) == self._fitted:
            return
        self._fitted = len(self.archive)
        for name, fit in self.fits().items():
            if fit < TRUSTED:
                logger.warning(
                    "The quadratic model of %s accounts for %.0f%% of the variance on new candidates (R^2 %.2f): its "
                    "front may be elsewhere. More samples help where the landscape is smooth; qnehvi where it is not.",
                    name, 100 * max(fit, 0.0), fit,
                )  # fmt: skip


@dataclass(frozen=True)
class Models:
    """A quadratic of every measured objective.

    Attributes:
        of_name: By the objective's name.
        problem: Whose objectives.
        search: Whose candidates.
    """

    of_name: dict[str, Quadratic]
    problem: Problem
    search: MAP

    @classmethod
    def of(cls, search: MAP, n: int) -> Models:
        """Fitted to the first n trials that were told."""
        points = search.units()[:n]
        return cls({name: Quadratic(points, search.told(name)[:n]) for name in search.measured}, search.problem, search)

    def objectives(self, points: FloatArray) -> FloatArray:
        """All objectives at points [n, d] of the unit cube, signs turned, [n, m]; known ones exactly."""
        configs = [self.search.config(point) for point in points]
        exact = (
            [known_values(self.problem, c) for c in configs] if len(self.of_name) < len(self.problem.objectives) else []
        )
        columns = [
            objective.sign
            * (
                self.of_name[objective.name].mean(points)
                if objective.name in self.of_name
                else np.array([each[objective.name] for each in exact])
            )
            for objective in self.problem.objectives
        ]
        return np.column_stack(columns)


def _most_volume(values: FloatArray, beside: FloatArray, corner: FloatArray, count: int) -> list[int]:
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
