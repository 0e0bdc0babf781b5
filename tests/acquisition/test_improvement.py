"""The boxes add up to what hypervolumes say, in any number of objectives."""

import numpy as np
import pytest

from moopt import pareto
from moopt.acquisition import Improvement, improvement


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0, 1, 12])
def test_the_improvement_is_the_difference_of_hypervolumes(objectives: int, size: int) -> None:
    rng = np.random.default_rng(objectives)
    reference = np.full(objectives, 0.9)
    fronts, draws = rng.random((3, size, objectives)), rng.random((3, 7, objectives))
    found = Improvement(fronts, reference).of(draws)
    for front, points, gains in zip(fronts, draws, found, strict=True):
        before = pareto.hypervolume(front, reference)
        expected = [pareto.hypervolume([*front, point], reference) - before for point in points]
        np.testing.assert_allclose(gains, expected, atol=1e-12)


def test_one_front_serves_all_draws() -> None:
    rng = np.random.default_rng(0)
    front, draws = rng.random((1, 5, 2)), rng.random((4, 6, 2))
    repeated = Improvement(np.repeat(front, 4, axis=0), np.ones(2)).of(draws)
    np.testing.assert_allclose(Improvement(front, np.ones(2)).of(draws), repeated)


def test_of_a_large_front_of_many_objectives_what_counts_most_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    directions = np.abs(rng.standard_normal((60, 4)))
    front = 1 - 0.8 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    draws = rng.random((1, 30, 4))
    found = Improvement(front[None], np.ones(4))
    before = pareto.hypervolume(front, np.ones(4))
    exact = [pareto.hypervolume([*front, point], np.ones(4)) - before for point in draws[0]]
    gains = found.of(draws)[0]
    assert (gains >= np.array(exact) - 1e-12).all()
    assert set(np.argsort(-gains)[:3]) == set(np.argsort(-np.array(exact))[:3])
    monkeypatch.setattr(improvement, "MOST", 60)
    assert found._lower.shape[1] < 0.8 * Improvement(front[None], np.ones(4))._lower.shape[1]
