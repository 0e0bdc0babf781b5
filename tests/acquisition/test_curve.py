"""Improvement over the line through a front."""

import numpy as np
import pytest

from moopt.acquisition import CurveImprovement

CORNER = np.array([1.0, 1.0])
GRID = np.linspace(-0.1, 1, 50_001)


def summed(front, candidate):
    """The area between the line and a candidate, summed over a fine grid."""
    cost, loss = candidate
    points = sorted(p for p in map(tuple, front) if max(p) < 1)
    lowest = [p for k, p in enumerate(points) if all(p[1] < q[1] for q in points[:k])]
    line = np.ones(len(GRID))
    if lowest:
        costs, losses = zip(*lowest, strict=True)
        line = np.where(GRID < costs[0], 1.0, np.interp(GRID, costs, losses))
    return float((np.maximum(line - min(loss, 1.0), 0) * (cost <= GRID)).sum() * (GRID[1] - GRID[0]))


@pytest.mark.parametrize("points", [0, 1, 2, 7])
def test_it_is_the_area_between_the_line_and_the_candidate(points):
    rng = np.random.default_rng(points)
    front, candidates = 1.1 * rng.random((1, points, 2)), 1.1 * rng.random((1, 6, 2))
    found = CurveImprovement(front, CORNER, 0).of(candidates)
    assert found[0] == pytest.approx([summed(front[0], c) for c in candidates[0]], abs=1e-4)


def test_a_point_on_the_line_between_two_others_improves_nothing():
    front = np.array([[[0.2, 0.8], [0.6, 0.4]]])
    assert CurveImprovement(front, CORNER, 0).of(np.array([[[0.4, 0.6], [0.4, 0.5]]]))[0] == pytest.approx([0, 0.005])


def test_the_cost_may_be_the_second_objective():
    rng = np.random.default_rng(0)
    fronts, draws = rng.random((3, 5, 2)), rng.random((3, 4, 2))
    turned = CurveImprovement(fronts[..., ::-1], CORNER, 1).of(draws[..., ::-1])
    assert turned == pytest.approx(CurveImprovement(fronts, CORNER, 0).of(draws))


def test_one_front_serves_all_draws_and_nan_adds_nothing():
    front = np.array([[[0.5, 0.5], [np.nan, 0.1]]])
    found = CurveImprovement(front, CORNER, 0).of(np.array([[[0.5, 0.4]], [[np.nan, 0.4]], [[0.4, np.nan]]]))
    assert found[:, 0] == pytest.approx([0.05, 0, 0])
