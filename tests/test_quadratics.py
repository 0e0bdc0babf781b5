"""Quadratic models: exact where the truth is quadratic, in range behind a link, honest about what they do not know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moopt.quadratics import LINKS, Link, Quadratic, determination, link_of, terms

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
    fit = Quadratic(points, np.full(10, value))
    assert fit.mean(points) == pytest.approx(value, abs=0.01)


def test_links_are_inferred():
    assert link_of(np.array([0.0, 0.4, 1.0])) == "sigmoid"
    assert link_of(np.array([0.1, 4.0])) == "softplus"
    assert link_of(np.array([-0.1, 0.4])) == "identity"


def test_r2():
    measured = np.array([1.0, 2.0, 3.0])
    assert determination(measured, measured) == 1
    assert determination(np.full(3, 2.0), measured) == 0
    assert np.isnan(determination(np.ones(2), np.ones(2)))
