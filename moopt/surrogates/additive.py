"""How additive surrogates learn: every decision adds its share, and a Gaussian process has what is left.

What one option of one decision adds, theta, has a Gaussian prior: around a table that the problem estimates, or around
a trend over the levels. The latent number is linear in theta near the most probable theta, so that the posterior of
theta and of the residual is one Gaussian (the Laplace approximation, found by Gauss-Newton steps).

Where a space has numbers beside its decisions, such as the coefficients of a merge beside bits, all numbers together
add a share, too: a Gaussian process of their own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular

from moopt.surrogates.base import Data, FloatArray, Surrogate, factor, left_out
from moopt.surrogates.options import Options

STEPS, TOLERANCE = 40, 1e-3
"""Gauss-Newton steps at most, and the change of theta, or of the loss for each value, that ends them."""
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
"""How much of a step is taken: the first that lowers the loss."""

REACH = 0.1
"""How far the residual reaches: the mean squared difference of levels, as shares of their range, at which it is 1/e."""

GRIDS = {
    "decision": (0.05, 0.2, 0.4, 0.8, 1.5, 2.5),
    "option": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
    "residual": (0.003, 0.01, 0.03, 0.1, 0.3, 0.6),
    "noise": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "numbers": (0.03, 0.1, 0.3, 1.0, 3.0),
    "length": (0.1, 0.2, 0.4, 0.8, 1.6),
}
"""The prior's scales that a fit tries, one after the other."""

PASSES = 2
"""How often a fit goes through all scales."""


@dataclass(frozen=True)
class Scales:
    """Standard deviations of the prior: of a decision's theta, of each option's beside it, of trends, and of the rest.

    Residual, noise and what numbers add are in units of the latent number; the length is how far numbers reach, as a
    share of their ranges.
    """

    decision: float
    option: float
    trend: float
    residual: float = 0.05
    noise: float = 0.01
    numbers: float = 1.0
    length: float = 0.4

    def rest(self, apart: _Apart) -> FloatArray:
        """The covariance of what theta does not bring, without noise."""
        found: FloatArray = self.residual**2 * np.exp(-apart.all / REACH)
        if apart.numbers is not None:
            found += self.numbers**2 * np.exp(-0.5 * apart.numbers / self.length**2)
        return found

    def weighted(self, products: _Products) -> FloatArray:
        """The covariance that theta brings, [n, k]."""
        found: FloatArray = self.option**2 * products.option + self.decision**2 * products.decision
        found += self.trend**2 * products.trend
        return found


class _Apart(NamedTuple):
    """Squared distances of candidates: the mean over all variables, and the sum over numbers, None without any."""

    all: FloatArray
    numbers: FloatArray | None


class _View(NamedTuple):
    """The latent number of candidates as theta tells it, and its derivatives: by option, by decision, by trend."""

    latent: FloatArray
    option: FloatArray
    decision: FloatArray
    trend: FloatArray


class _Products(NamedTuple):
    """The inner products of derivatives, [n, k] each: by option, by decision, by trend."""

    option: FloatArray
    decision: FloatArray
    trend: FloatArray

    @classmethod
    def of(cls, left: _View, right: _View) -> _Products:
        return cls(left.option @ right.option.T, left.decision @ right.decision.T, left.trend @ right.trend.T)


class _Parts(NamedTuple):
    """Theta beside its prior mean, in the parts that the prior speaks of: by option [t], decision [d] and trend [k]."""

    option: FloatArray
    decision: FloatArray
    trend: FloatArray

    @classmethod
    def none(cls, options: Options) -> _Parts:
        return cls(np.zeros(options.total), np.zeros(len(options.counts)), np.zeros(options.trends))

    def theta(self, options: Options) -> FloatArray:
        return self.option + self.decision[options.owner] + self.trend[options.trend]

    def towards(self, goal: _Parts, share: float) -> _Parts:
        return _Parts(*(a + share * (b - a) for a, b in zip(self, goal, strict=True)))

    def improbable(self, scales: Scales) -> float:
        """Half the squared distance from the prior, in its standard deviations."""
        spreads = (scales.option, scales.decision, scales.trend)
        return 0.5 * float(sum((part @ part) / spread**2 for part, spread in zip(self, spreads, strict=True)))


class _State(NamedTuple):
    """A solution: theta, the view of the data from it, the covariance's factor, its residuals, and the evidence."""

    parts: _Parts
    view: _View
    products: _Products
    factored: FloatArray
    residuals: FloatArray
    weights: FloatArray
    evidence: float


class AdditiveSurrogate(Surrogate):
    """The base of the surrogates in `moopt.surrogates.sums`, which say how parts make the objective.

    Args:
        data: What was measured.
        options: The decisions.
        prior: What each option is estimated to add, [decisions, options], in the objective's unit; None: a trend.
    """

    def __init__(self, data: Data, options: Options, prior: npt.ArrayLike | None = None) -> None:
        self._options = options
        self._start(data)
        self._load(data)
        if prior is None:
            self._prior, self._scales = self._trend(), Scales(1.0, 0.3, 3.0)
        else:
            self._prior, self._scales = self._known(options.listed(prior)), Scales(0.4, 0.2, 0.5)
        self._state = self._solved(self._scales)
        self._fit()
        self.score = self._left_out()

    def conditioned(self, data: Data) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._load(data)
        view = new._seen(self._state.parts)
        start = self._state._replace(view=view, products=_Products.of(view, view))
        new._state = new._solved(new._scales, start)
        return new

    def posterior(self, codes: FloatArray) -> tuple[FloatArray, FloatArray]:
        view = self._viewed(codes, self._theta)
        mean, across = self._seen_from(view, codes)
        explained = solve_triangular(self._state.factored, across.T, lower=True)
        rest = self._scales.rest(self._apart(codes, codes))
        covariance = self._covariance(view, view) + rest - explained.T @ explained
        return mean, covariance

    def latent(self, codes: FloatArray) -> FloatArray:
        return self._seen_from(self._viewed(codes, self._theta), codes)[0]

    def _seen_from(self, view: _View, codes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The latent mean [n] of candidates [n, d], and their covariance with the data, [n, data]."""
        rest = self._scales.rest(self._apart(codes, self._data.codes))
        across = self._covariance(view, self._state.view) + rest
        mean = view.latent - view.option @ (self._theta - self._prior) + across @ self._state.weights
        return mean, across

    def tables(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Draws from the posterior by Matheron's rule; the first is the most probable table."""
        state, scales, options = self._state, self._scales, self._options
        noise = factor(self._rest(scales))
        drawn = [self._theta]
        for _ in range(n - 1):
            prior = _Parts(
                scales.option * rng.standard_normal(options.total),
                scales.decision * rng.standard_normal(len(options.counts)),
                scales.trend * rng.standard_normal(options.trends),
            ).theta(options)
            error = state.residuals - state.view.option @ prior - noise @ rng.standard_normal(len(noise))
            more = self._explained(state.view, scales, cho_solve((state.factored, True), error)).theta(options)
            drawn.append(self._prior + prior + more)
        return options.tables(self._added(np.array(drawn)))

    @abstractmethod
    def _start(self, data: Data) -> None:
        """Find the scale of the latent number."""

    @abstractmethod
    def _latent(self, data: Data) -> tuple[FloatArray, FloatArray]:
        """The latent numbers [n] and the variances of their errors [n]."""

    @abstractmethod
    def _known(self, row: FloatArray) -> FloatArray:
        """Theta [t] of what each option is estimated to add [t]."""

    @abstractmethod
    def _added(self, theta: FloatArray) -> FloatArray:
        """What each option adds to the objective, up to a common constant; the shape of theta."""

    @abstractmethod
    def _summed(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The latent number [n] of thetas [n, d], and its derivative by each, [n, d]."""

    @abstractmethod
    def _spread(self, total: FloatArray, slope: float, level: FloatArray) -> FloatArray:
        """Theta [t] of a latent number that falls along a line over the levels (shares of their range, [t])."""

    def _load(self, data: Data) -> None:
        self._data = data
        self._targets, self._errors = self._latent(data)
        self._distances = self._apart(data.codes, data.codes)

    def _trend(self) -> FloatArray:
        """The prior theta [t] where the problem has no table: one line over the levels, fitted to the data."""
        options = self._options
        level = options.shares(self._data.codes).mean(axis=1)
        columns = np.column_stack([np.ones(len(level)), level])
        start, slope = np.linalg.lstsq(columns, self._targets, rcond=None)[0]
        shares = options.level / np.maximum(options.counts[options.owner] - 1, 1)
        return self._spread(start, float(slope), shares)

    def _viewed(self, codes: FloatArray, theta: FloatArray) -> _View:
        options, places = self._options, self._options.places(codes)
        latent, shares = self._summed(theta[places])
        option = np.zeros((len(codes), options.total))
        np.put_along_axis(option, places, shares, axis=1)
        trend = np.zeros((len(codes), options.trends))
        np.add.at(trend, (np.arange(len(codes))[:, None], options.trend[places]), shares)
        return _View(latent, option, shares, trend)

    def _covariance(self, left: _View, right: _View) -> FloatArray:
        """What theta makes two sets of candidates share under the fitted scales, [n, k]."""
        return self._scales.weighted(_Products.of(left, right))

    def _explained(self, view: _View, scales: Scales, weights: FloatArray) -> _Parts:
        """What theta is where the data, seen linearly, has these weights [n]."""
        return _Parts(
            scales.option**2 * (view.option.T @ weights),
            scales.decision**2 * (view.decision.T @ weights),
            scales.trend**2 * (view.trend.T @ weights),
        )

    def _apart(self, left: FloatArray, right: FloatArray) -> _Apart:
        options = self._options
        a, b = options.numbers(left), options.numbers(right)
        numbers = _squares(a, b)
        levels = _squares(options.shares(left), options.shares(right))
        return _Apart((levels + numbers) / left.shape[1], numbers if a.shape[1] else None)

    def _rest(self, scales: Scales) -> FloatArray:
        """The covariance [n, n] of what theta does not explain in the data."""
        found = scales.rest(self._distances)
        found[np.diag_indices_from(found)] += np.where(np.isnan(self._errors), scales.noise**2, self._errors + 1e-10)
        return found

    def _solved(self, scales: Scales, start: _State | None = None) -> _State:
        """The most probable theta: Gauss-Newton steps from a state of the same data, each as long as it helps."""
        options, rest = self._options, self._rest(scales)
        noise = factor(rest)
        parts = start.parts if start else _Parts.none(options)
        view = start.view if start else self._seen(parts)
        products = start.products if start else _Products.of(view, view)
        loss = self._loss(view, noise, parts, scales)
        for _ in range(STEPS):
            wanted = self._explained(view, scales, self._linear(view, products, scales, parts, rest)[2])
            before = loss
            if float(np.abs(wanted.theta(options) - parts.theta(options)).max()) > TOLERANCE:
                for share in SHARES:
                    tried = parts.towards(wanted, share)
                    seen = self._seen(tried)
                    if (found := self._loss(seen, noise, tried, scales)) < loss:
                        parts, view, loss = tried, seen, found
                        products = _Products.of(view, view)
                        break
            if before - loss < TOLERANCE * len(self._data):
                break
        factored, residuals, weights = self._linear(view, products, scales, parts, rest)
        evidence = -loss - float(np.log(np.diag(factored)).sum())
        return _State(parts, view, products, factored, residuals, weights, evidence)

    def _seen(self, parts: _Parts) -> _View:
        """The data as theta tells it."""
        return self._viewed(self._data.codes, self._prior + parts.theta(self._options))

    def _linear(
        self, view: _View, products: _Products, scales: Scales, parts: _Parts, rest: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The data seen linearly from a theta: the factor of its covariance, its residuals, and their weights."""
        factored = factor(scales.weighted(products) + rest)
        residuals = self._targets - view.latent + view.option @ parts.theta(self._options)
        return factored, residuals, cho_solve((factored, True), residuals)

    def _loss(self, view: _View, noise: FloatArray, parts: _Parts, scales: Scales) -> float:
        """Half the squared distance from data and prior, in standard deviations."""
        away = solve_triangular(noise, self._targets - view.latent, lower=True)
        return 0.5 * float(away @ away) + parts.improbable(scales)

    def _fit(self) -> None:
        """The scales under which the data is most probable: one after the other, step by step while it helps."""
        idle = set() if np.isnan(self._errors).any() else {"noise"}
        idle |= set() if self._distances.numbers is not None else {"numbers", "length"}
        names = [name for name in GRIDS if name not in idle]
        for _ in range(PASSES):
            before = self._scales
            for name in names:
                for step in (1, -1):
                    while self._moved(name, step):
                        pass
            if self._scales == before:
                break

    def _moved(self, name: str, step: int) -> bool:
        """Whether the next value of a scale is better; it is then taken."""
        grid = GRIDS[name]
        at = int(np.abs(np.log(np.array(grid) / getattr(self._scales, name))).argmin()) + step
        if not 0 <= at < len(grid):
            return False
        scales = replace(self._scales, **{name: grid[at]})
        state = self._solved(scales, self._state)
        if state.evidence <= self._state.evidence + 1e-6:
            return False
        self._scales, self._state = scales, state
        return True

    @property
    def _theta(self) -> FloatArray:
        found: FloatArray = self._prior + self._state.parts.theta(self._options)
        return found

    def _left_out(self) -> float:
        """The mean log density of each value given all others, in the objective's unit."""
        density = left_out(self._state.factored, self._state.residuals)
        return float(np.mean(density + self._stretch()))

    @abstractmethod
    def _stretch(self) -> FloatArray | float:
        """The log derivative of the latent number by the objective at the data, [n] or a number."""


def _squares(left: FloatArray, right: FloatArray) -> FloatArray:
    """The squared distances of rows [n, f] and [k, f], [n, k]."""
    found = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    squares: FloatArray = np.maximum(found, 0.0)
    return squares
