"""The region that weights point to, on fronts that can be worked out by hand."""

import numpy as np
import pytest

from moopt.region import Region

LINE = np.column_stack([np.linspace(0, 10, 101), np.linspace(5, 0, 101)])
"""A front from (0, 5) to (10, 0): scaled, from (0, 1) to (1, 0)."""


def within(weights: list[float], width: float) -> np.ndarray:
    """The first objective of what is in the region on that front."""
    return LINE[Region(weights, width).excess(LINE, LINE) == 0, 0]


def test_equal_weights_point_to_the_middle_whatever_the_units():
    found = within([1, 1], 0.1)
    assert found.min() == pytest.approx(4)
    assert found.max() == pytest.approx(6)


def test_what_counts_more_is_nearer_to_its_best():
    assert 2 < within([2, 1], 0.01).mean() < 4.5 < 5.5 < within([1, 2], 0.01).mean() < 8
    assert (within([2, 1], 0.1) == within([20, 10], 0.1)).all()


def test_one_weight_points_to_an_end():
    assert within([3, 0], 0.1).max() == pytest.approx(1, abs=0.11)


def test_excess_grows_with_the_distance_and_what_is_better_has_none():
    region = Region([1, 1], 0.1)
    nearer, farther, better = region.excess(np.array([[8.0, 1.0], [9.0, 0.5], [1.0, 0.5]]), LINE)
    assert 0 == better < nearer < farther


def test_values_of_any_shape_are_judged():
    drawn = np.random.default_rng(0).random((3, 4, 2)) * 10
    assert Region([1, 2], 0.1).excess(drawn, LINE).shape == (3, 4)


def test_where_nothing_differs_everything_is_in_the_region():
    point = np.array([[1.0, 2.0]])
    assert Region([1, 1], 0.1).excess(point, point).tolist() == [0.0]
