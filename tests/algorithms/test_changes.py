"""Tables around different candidates are one table up to a constant in each decision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moopt.algorithms.changes import Changes
from moopt.budgets import Knapsack


@given(seed=st.integers(0, 10**6), tables=st.integers(1, 4))
def test_what_is_told_around_any_candidates_is_one_table(seed: int, tables: int) -> None:
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.integers(1, 50, (6, 4)), axis=1)
    costs[1:, 3] = np.where(rng.random(5) < 0.5, -1, costs[1:, 3])
    losses = np.where(costs >= 0, rng.lognormal(0, 2, costs.shape), np.inf)
    changes, rows = Changes(costs), np.arange(6)
    for _ in range(tables):
        around = rng.integers(0, 3, 6)
        changes.learn(losses - losses[rows, around][:, None], float(rng.integers(1, 5)))
    apart = np.where(costs >= 0, losses - changes.table, losses[:, :1] - changes.table[:, :1])
    assert np.ptp(apart, axis=1) == pytest.approx(0, abs=1e-9)
    budget = int((costs[:, 0].sum() + costs.max(axis=1).sum()) // 2)
    best, exact = Knapsack(changes.table, costs).at(budget), Knapsack(losses, costs).at(budget)
    assert losses[rows, best].sum() == pytest.approx(losses[rows, exact].sum())


def test_tables_count_by_their_weight_and_the_past_by_no_more_than_is_said() -> None:
    changes = Changes(np.array([[1, 2]]))
    changes.learn(np.array([[0.0, 1.0]]), 3)
    changes.learn(np.array([[0.0, 5.0]]))
    assert changes.table.tolist() == [[-1.0, 1.0]]
    changes.weigh(1)
    changes.learn(np.array([[0.0, 4.0]]))
    assert changes.table.tolist() == [[-1.5, 1.5]]


def test_a_table_tells_nothing_of_a_decision_that_it_does_not_know_whole() -> None:
    changes = Changes(np.array([[1, 2], [1, 2], [1, -1]]))
    changes.learn(np.array([[0.0, 2.0], [np.inf, 0.0], [3.0, np.inf]]))
    changes.learn(np.array([[0.0, np.nan], [1.0, 2.0], [0.0, np.inf]]))
    assert changes.table.tolist() == [[-1.0, 1.0], [-0.5, 0.5], [0.0, 0.0]]


def test_where_nothing_is_known_staying_is_all_there_is() -> None:
    changes = Changes(np.array([[1, 2], [1, 2]]))
    changes.learn(np.array([[0.0, 2.0], [np.inf, 0.0]]))
    assert changes.known.tolist() == [True, False]
    assert changes.around(np.array([1, 0])).tolist() == [[-2.0, 0.0], [0.0, np.inf]]


def test_a_curvature_counts_half_beside_what_sensitivities_say_of_it() -> None:
    costs, choice = np.array([[1, 2, 3]]), np.array([1])
    linear, curvature = np.array([[4.0, 0.0, -2.0]]), np.array([[8.0, 0.0, 6.0]])
    alone, beside = Changes(costs), Changes(costs)
    alone.learn_around(choice, linear, curvature)
    assert alone.around(choice).tolist() == [[12.0, 0.0, 4.0]]
    beside.begin(np.array([[5.0, 1.0, 0.0]]), 1e-12)
    beside.learn_around(choice, linear, curvature)
    assert beside.around(choice) == pytest.approx(np.array([[4 + (8 + 6) / 2, 0.0, -2 + (6 + 1) / 2]]))


@given(seed=st.integers(0, 10**6))
def test_exchanges_are_all_choices_one_or_two_changes_away_within_the_budget_best_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.integers(1, 50, (4, 3)), axis=1)
    costs[1:, 2] = np.where(rng.random(3) < 0.5, -1, costs[1:, 2])
    losses = np.where(costs >= 0, rng.lognormal(0, 2, costs.shape), np.inf)
    changes, rows, choice = Changes(costs), np.arange(4), rng.integers(0, 2, 4)
    changes.learn(losses)
    budget = int(costs[rows, choice].sum() + rng.integers(0, 20))
    told, found = changes.exchanges(choice, budget)
    expected = {
        tuple(map(int, other)): float((losses[rows, other] - losses[rows, choice]).sum())
        for other in itertools.product(range(3), repeat=4)
        if (costs[rows, other] >= 0).all() and costs[rows, other].sum() <= budget
        if (changed := (np.array(other) != choice).sum()) == 1
        or (changed == 2 and (costs[rows, other] < costs[rows, choice]).any())
    }
    assert dict(zip((tuple(map(int, other)) for other in found), told, strict=True)) == pytest.approx(expected)
    assert list(told) == sorted(told)
    assert len(found) == len(expected)


def test_what_nothing_is_known_of_is_not_exchanged() -> None:
    changes = Changes(np.array([[1, 2], [1, 2]]))
    assert changes.exchanges(np.array([0, 1]), 3)[1] == []
    changes.learn(np.array([[0.0, 1.0], [0.0, np.inf]]))
    assert [choice.tolist() for choice in changes.exchanges(np.array([0, 0]), 3)[1]] == [[1, 0]]
