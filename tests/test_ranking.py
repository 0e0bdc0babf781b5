"""Rank correlations against scipy's, and what an interval promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from moopt import ranking
from moopt.ranking import Measured


@pytest.fixture
def measured() -> Measured:
    rng = np.random.default_rng(0)
    options = rng.integers(3, size=(90, 12))
    table = np.array([[4.0, 2.0, 1.0]]) * rng.random((12, 1))
    losses = table[np.arange(12), options].sum(1) + 0.3 * rng.standard_normal(90)
    return Measured(options, losses, np.repeat([3.0, 3.5, 4.0], 30))


def test_correlations_are_scipys_with_ties_too(measured: Measured) -> None:
    rounded = measured.losses.round(0)
    assert ranking.spearman(rounded, measured.losses) == pytest.approx(spearmanr(rounded, measured.losses)[0])
    assert ranking.spearman(np.ones(5), np.arange(5.0)) == 0


def test_a_table_predicts_the_sum_of_what_is_taken() -> None:
    measured = Measured(np.array([[0, 1], [1, 1]]), np.zeros(2), np.zeros(2))
    assert measured.predicted(np.array([[1.0, 2.0], [10.0, 20.0]])).tolist() == [21.0, 22.0]


def test_an_interval_holds_its_value_and_sizes_are_apart(measured: Measured) -> None:
    by_size = ranking.within(measured, measured.losses)
    assert list(by_size) == [3.0, 3.5, 4.0]
    assert all((i.value, i.low, i.high) == pytest.approx((1, 1, 1)) for i in by_size.values())
    shifted = measured.losses + 100 * measured.sizes  # right within each size, and overall only by the size
    assert ranking.fitness(measured, shifted) == pytest.approx(1)
    noisy = ranking.overall(measured, measured.losses + np.random.default_rng(1).standard_normal(90))
    assert noisy.low < noisy.value < noisy.high < 1


def test_a_gain_is_told_from_noise(measured: Measured) -> None:
    rng = np.random.default_rng(2)
    good = measured.losses + 0.1 * rng.standard_normal(90)
    bad = rng.standard_normal(90)
    assert ranking.gain(measured, good, bad).low > 0
    same = ranking.gain(measured, good, good)
    assert (same.value, same.low, same.high) == (0, 0, 0)
