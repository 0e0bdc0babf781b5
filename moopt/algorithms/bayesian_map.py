"""MAP whose samples go where its models are wrong: for few evaluations (Li et al. 2024, "Bayesian MAP")."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moopt.algorithms.amortized import DRAWN, FEWEST, MAP, Models
from moopt.algorithms.base import positive
from moopt.problem import Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PARTS, PARTS_OF_MANY, MANY = 4, 2, 4
"""Into how many parts each angle is divided, and with so many variables or more."""
MOST_BINS, TRIED = 256, 2048
"""How many bins there are at most, and directions that are drawn to find one in a bin."""
TEMPERATURE = 0.07
"""Of the softmax that bins are drawn by."""
UNCERTAIN = 0.5
"""How many standard deviations of a bin's squared errors count beside their mean."""


class BayesianMAP(MAP):
    """MAP with samples in rounds: directions in which the models err most are sampled most.

    Half of the samples come as those of MAP. They are sorted into bins by their direction from the lower
    corner of the space. A bin scores by the mean of the models' squared errors in it and half their standard deviation;
    an empty one like all bins together. Bins are drawn by a softmax of their scores, and of points anywhere in one that
    is sampled of which the other samples say least.

    Args:
        samples: Trials before the first search of the models; None: twice the coefficients.
        picks: Candidates of the models' front that a round evaluates, as for MAP.
        batch: Samples of a round.
    """

    def __init__(self, samples: int | None = None, picks: int | None = None, batch: int = 8) -> None:
        super().__init__(samples, picks)
        self.batch = positive("batch", batch)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._first = max(FEWEST, self._count // 2)

    def sampled(self, left: int, rng: np.random.Generator) -> list[Config]:
        if self.upcoming < self._first or len(self.archive) < FEWEST:
            return self.unseen(self.telling(rng), min(left, max(self._first - self.upcoming, 1)), rng)
        return self.unseen(self._where_it_errs(rng), self.batch if left >= 2 * self.batch else left, rng)

    def _where_it_errs(self, rng: np.random.Generator) -> Iterator[Config]:
        """Samples without end, in bins drawn by their scores."""
        d = len(self.problem.space)
        bins = self._bins(self.units())
        _, total = self._parts()
        scores = self._scores(bins, total)
        odds = np.exp((scores - scores.max()) / (TEMPERATURE * max(float(scores.max()), 1e-12)))
        odds /= odds.sum()

        def inside() -> FloatArray:
            drawn = int(rng.choice(total, p=odds))
            directions = np.abs(rng.normal(size=(TRIED, d)))  # even over the sphere, which even angles are not
            found = directions[self._bins(directions) == drawn][:DRAWN]
            found = found if len(found) else directions[:1]
            radii: FloatArray = rng.random((len(found), 1)) / np.maximum(found.max(axis=1, keepdims=True), 1e-12)
            return radii * found

        return self.least_known(inside)

    def _scores(self, bins: IntArray, total: int) -> FloatArray:
        """What each bin promises, [bins]: squared errors of the models, each relative to its objective's variance."""
        models, points = Models.of(self, len(self.archive)), self.units()
        errors = np.zeros(len(points))
        for name in self.measured:
            measured = self.told(name)
            errors += (models.of_name[name].mean(points) - measured) ** 2 / max(float(measured.var()), 1e-12)
        prior = float(errors.mean() + UNCERTAIN * errors.std())
        found = np.full(total, prior)
        for place in np.unique(bins):
            inside = errors[bins == place]
            found[place] = inside.mean() + UNCERTAIN * inside.std()
        return found

    def _parts(self) -> tuple[int, int]:
        """Into how many parts an angle is divided, and how many bins that makes."""
        angles = len(self.problem.space) - 1
        parts = PARTS if angles + 1 < MANY else PARTS_OF_MANY
        while parts > 1 and parts**angles > MOST_BINS:
            parts -= 1
        return parts, parts**angles

    def _bins(self, points: FloatArray) -> IntArray:
        """The bins of points [n, d] of the unit cube, [n]."""
        parts, _ = self._parts()
        found = np.zeros(len(points), dtype=np.int64)
        for axis in range(points.shape[1] - 1):
            rest = np.linalg.norm(points[:, axis + 1 :], axis=1)
            angle = np.arctan2(rest, points[:, axis])
            found += np.minimum((angle / (np.pi / 2) * parts).astype(np.int64), parts - 1) * parts**axis
        return found
