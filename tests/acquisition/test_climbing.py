"""Climbing: to the top of a smooth score, within the bounds, levels left alone."""

from __future__ import annotations

import numpy as np
import pytest

import moopt
from moopt.acquisition import climbed

SPACE = moopt.Space({"x": moopt.Float(-1, 3), "bits": moopt.Ordinal(2, 4, 8), "y": moopt.Float(0, 1)})


def test_it_goes_to_the_top_and_leaves_levels() -> None:
    def score(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.exp(-((rows[:, 0] - 1.7) ** 2) - 30 * (rows[:, 2] - 0.4) ** 2)
        return found

    found = climbed(score, np.array([[0.0, 2.0, 0.9], [3.0, 0.0, 0.0]]), SPACE)
    assert found[:, 0] == pytest.approx(1.7, abs=1e-3)
    assert found[:, 2] == pytest.approx(0.4, abs=1e-3)
    assert found[:, 1].tolist() == [2.0, 0.0]


def test_it_stays_within_the_bounds_and_where_nothing_is_promised() -> None:
    found = climbed(lambda rows: np.exp(rows[:, 0] + rows[:, 2]), np.array([[0.0, 1.0, 0.5]]), SPACE)
    assert found.tolist() == [[3.0, 1.0, 1.0]]
    start = np.array([[0.5, 1.0, 0.5]])
    assert climbed(lambda rows: np.zeros(len(rows)), start, SPACE) == pytest.approx(start)
