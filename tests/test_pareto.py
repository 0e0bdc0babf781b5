import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moopt import Objective, pareto
from moopt.errors import NoFeasibleTrial

points = st.tuples(st.integers(1, 15), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(-3, 3).map(float))
)


def dominates(a, b) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(points)
def test_the_front_is_what_nothing_dominates(values):
    kept = pareto.nondominated(values)
    for i, row in enumerate(values):
        beaten = any(dominates(other, row) for other in values) or any((row == other).all() for other in values[:i])
        assert kept[i] != beaten


@given(points)
def test_ranks_peel_front_by_front(values):
    ranks, left, rank = pareto.ranks(values), np.arange(len(values)), 0
    while len(left):
        front = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        assert (ranks[front] == rank).all()
        left, rank = np.setdiff1d(left, front), rank + 1


@given(points)
def test_hypervolume_counts_the_cells_dominated(values):
    corner = np.full(values.shape[1], 4.0)
    cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * values.shape[1], indexing="ij"), -1).reshape(-1, values.shape[1])
    dominated = (values[:, None] <= cells).all(axis=2).any(axis=0)
    assert pareto.hypervolume(values, corner) == pytest.approx(dominated.sum())


def test_points_beyond_the_reference_add_nothing():
    assert pareto.hypervolume([[1, 1], [0, 9]], [2, 2]) == 1.0
    assert pareto.hypervolume([[3, 3]], [2, 2]) == 0.0
    assert pareto.hypervolume(np.zeros((0, 2)), [2, 2]) == 0.0


@given(points)
def test_crowding_is_infinite_at_the_ends(values):
    distance = pareto.crowding(values)
    assert (distance >= 0).all()
    for column in values.T:
        assert np.isinf(distance[column == column.min()]).any()
        assert np.isinf(distance[column == column.max()]).any()


def test_reference_is_a_tenth_beyond_the_front_unless_declared():
    values = [[0, 10], [10, 0], [99, 99]]
    assert pareto.reference_point(values) == pytest.approx([11, 11])
    assert pareto.reference_point(values, [None, 5.0]) == pytest.approx([11, 5])
    assert pareto.reference_point([[2.0, -3.0]]) == pytest.approx([2.2, -2.7])


def test_the_knee_is_the_point_farthest_below_the_extremes():
    assert pareto.knee([[0, 100], [10, 20], [60, 10], [100, 0], [99, 99]]) == 1
    assert pareto.knee([[5, 5]]) == 0


def test_of_no_points_there_is_no_knee_and_no_corner():
    for what in (pareto.knee, pareto.reference_point):
        with pytest.raises(NoFeasibleTrial, match="Got no points"):
            what([])
    assert pareto.crowding(np.zeros((0, 2))).shape == (0,)


def test_minimised_turns_signs():
    objectives = [Objective("loss"), Objective("speed", direction="max")]
    assert pareto.minimised([{"loss": 1, "speed": 2}], objectives).tolist() == [[1, -2]]
    assert pareto.minimised([], objectives).shape == (0, 2)


@given(points)
def test_the_best_for_any_preference_is_not_dominated(values):
    weights = np.random.default_rng(0).dirichlet(np.ones(values.shape[1]))
    best = np.argmin(pareto.chebyshev(pareto.scaled(values, values), weights))
    assert not any(dominates(other, values[best]) for other in values)


def test_scaled_values_go_from_0_to_1_within_and_constants_are_0():
    assert pareto.scaled([[2.0, 5.0], [6.0, 5.0]], [[0.0, 5.0], [4.0, 5.0]]).tolist() == [[0.5, 0.0], [1.5, 0.0]]
