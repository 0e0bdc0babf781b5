"""Tables around different candidates are one table up to a constant in each decision."""

from __future__ import annotations

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
    choice = rng.integers(0, 3, 6)
    assert changes.around(choice) == pytest.approx(losses - losses[rows, choice][:, None])
    budget = int((costs[:, 0].sum() + costs.max(axis=1).sum()) // 2)
    best, exact = Knapsack(changes.around(choice), costs).at(budget), Knapsack(losses, costs).at(budget)
    assert losses[rows, best].sum() == pytest.approx(losses[rows, exact].sum())


def test_tables_count_by_their_weight_and_the_past_by_no_more_than_is_said() -> None:
    changes, choice = Changes(np.array([[1, 2]])), np.array([0])
    changes.learn(np.array([[0.0, 1.0]]), 3)
    changes.learn(np.array([[0.0, 5.0]]))
    assert changes.around(choice).tolist() == [[0.0, 2.0]]
    changes.weigh(1)
    changes.learn(np.array([[0.0, 4.0]]))
    assert changes.around(choice).tolist() == [[0.0, 3.0]]


def test_a_decision_that_no_table_knows_stays_as_it_is() -> None:
    changes = Changes(np.array([[1, 2], [1, 2]]))
    changes.learn(np.array([[0.0, -1.0], [np.inf, 0.0]]))
    assert changes.around(np.array([0, 1])).tolist() == [[0.0, -1.0], [np.inf, 0.0]]
    assert Knapsack(changes.around(np.array([0, 1])), np.array([[1, 2], [1, 2]])).at(4).tolist() == [1, 1]
