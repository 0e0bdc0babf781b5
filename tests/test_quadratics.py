"""Quadratic models: exact where the truth is quadratic, in range behind a link, honest about what they do not know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moopt.errors import SurrogateError
from moopt.quadratics import LINKS, Link, Quadratic, fit, leverage, links, terms

seeds = st.integers(0, 2**31)


@given(seed=seeds, d=st.integers(1, 4))
def test_a_quadratic_is_found_from_as_many_points_as_it_has_terms(seed: int, d: int):
    rng = np.random.default_rng(seed)
    points = rng.random((2 * terms(d), d))
    a, b, e = rng.normal(size=(d, d)), rng.normal(size=d), rng.normal()
    fit = Quadratic(points, e + points @ b + ((points @ a) * points).sum(1), "identity")
    new = rng.random((20, d))
    truth = e + new @ b + ((new @ a) * new).sum(1)
    assert fit.mean(new) == pytest.approx(truth, abs=0.02 * np.ptp(truth) + 1e-3)


@pytest.mark.parametrize("link", ["sigmoid", "softplus"])
@given(seed=seeds)
def test_links_keep_values_in_their_range_and_are_undone(link: Link, seed: int):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=50)
    act = LINKS[link]
    assert act.inverse(act.forward(z)) == pytest.approx(z, abs=1e-6)
    eps = 1e-6
    assert act.slope(z) == pytest.approx((act.forward(z + eps) - act.forward(z - eps)) / (2 * eps), abs=1e-5)
    fit = Quadratic(rng.random((12, 2)), act.forward(rng.normal(size=12)), link)
    far = fit.mean(rng.normal(0, 20, (50, 2)))
    assert (far >= 0).all()
    assert link == "softplus" or (far <= 1).all()


def test_an_accuracy_that_saturates_is_fitted_better_through_a_sigmoid():
    rng = np.random.default_rng(0)
    points, new = rng.random((24, 2)), rng.random((200, 2))

    def truth(u: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(6 - 20 * ((u - 0.5) ** 2).sum(1) * 2)))

    fits = {link: Quadratic(points, truth(points), link) for link in ("identity", "sigmoid")}  # type: ignore[arg-type]
    errors = {link: np.abs(fit.mean(new) - truth(new)).mean() for link, fit in fits.items()}
    assert errors["sigmoid"] < 0.3 * errors["identity"]


def test_it_is_less_sure_where_it_was_not_measured():
    rng = np.random.default_rng(0)
    points = 0.5 * rng.random((30, 2))
    fit = Quadratic(points, points.sum(1) + 0.01 * rng.normal(size=30), "identity")
    inside, outside = fit.deviations(np.array([[0.25, 0.25], [1.0, 1.0]]))
    assert 0 < inside < 0.01 < outside
    assert abs(fit.mean(np.array([[0.25, 0.25]]))[0] - 0.5) < 3 * inside + 0.005


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_points_than_terms_still_give_numbers(count: int):
    rng = np.random.default_rng(0)
    points, values = rng.random((count, 3)), rng.random(count)
    fit = Quadratic(points, values)
    assert np.isfinite(fit.mean(points)).all()
    assert np.isfinite(fit.deviations(points)).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, 3.0, -1.0])
def test_constants_are_constants(value: float):
    points = np.random.default_rng(0).random((10, 2))
    assert fit(points, np.full(10, value)).mean(points) == pytest.approx(value, abs=0.01)


def test_links_are_those_that_values_allow_and_the_one_that_predicts_best_is_taken():
    assert links(np.array([0.0, 0.4, 1.0])) == ("identity", "sigmoid")
    assert links(np.array([0.1, 4.0])) == ("identity", "softplus")
    assert links(np.array([-0.1, 0.4])) == ("identity",)
    points = np.random.default_rng(0).random((24, 2))
    bowl = 0.5 * ((points - 0.3) ** 2).sum(1)
    assert fit(points, bowl).link == "identity"
    assert fit(points, 1 / (1 + np.exp(-(3 - 20 * bowl)))).link == "sigmoid"
    assert fit(points, np.logaddexp(0, 3 - 30 * bowl)).link == "softplus"


@pytest.mark.parametrize("value", [1e308, np.inf, np.nan, -1e200])
def test_what_cannot_be_modelled_is_said(value: float):
    points = np.random.default_rng(0).random((8, 2))
    with pytest.raises(SurrogateError, match="too large for a quadratic"):
        fit(points, np.append(np.ones(7), value))


def test_leverage_is_the_variance_of_the_model():
    rng = np.random.default_rng(0)
    known, points = rng.random((12, 2)), rng.random((5, 2))
    drawn = [Quadratic(known, rng.standard_normal(12)).mean(points) for _ in range(4000)]
    np.testing.assert_allclose(leverage(points, known), np.var(drawn, axis=0), rtol=0.15)


def test_leverage_is_greatest_far_from_what_is_known():
    known = np.array([[0.1, 0.1], [0.2, 0.1], [0.1, 0.3], [0.3, 0.3], [0.2, 0.2], [0.3, 0.1], [0.15, 0.25]])
    near, far = leverage(np.array([[0.2, 0.2], [1.0, 1.0]]), known)
    assert far > 100 * near
    assert np.isfinite(leverage(known, known[:1])).all()  # fewer than it has coefficients
