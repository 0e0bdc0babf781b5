"""Relaxed choices cost exactly the budget at every step, and their likeliest choice never more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moopt.budgets import Knapsack
from moopt.errors import BudgetError
from moopt.relaxation import Relaxation, regret


def problem(seed: int, decisions: int = 12, options: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Losses and costs [decisions, options], some options missing."""
    rng = np.random.default_rng(seed)
    costs = np.sort(rng.integers(1, 10**9, size=(decisions, options)), axis=1)
    costs[rng.random(costs.shape) < 0.1] = -1
    costs[:, 0] = np.abs(costs[:, 0])
    return rng.lognormal(0, 3, size=costs.shape), costs


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99), size=st.floats(1e-6, 1e6))
def test_the_expected_cost_is_the_budget_at_every_step(seed: int, share: float, size: float) -> None:
    losses, costs = problem(seed)
    bounds = Knapsack(np.zeros(costs.shape), costs)
    budget = int(bounds.least + share * (bounds.most - bounds.least))
    relaxation, rng = Relaxation(costs, budget, -np.log(losses)), np.random.default_rng(seed)
    for _ in range(10):
        assert abs(relaxation.cost - budget) <= 1e-6 * budget
        relaxation.move(rng.normal(size=costs.shape) * size)
    assert np.allclose(relaxation.probabilities.sum(axis=1), 1)
    assert (relaxation.probabilities[costs < 0] == 0).all()
    taken = costs[np.arange(len(costs)), relaxation.draw(rng)]
    assert (taken >= 0).all()
    assert taken.sum() <= budget


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99), size=st.sampled_from([1e-9, 1.0, 1e9]))
def test_regret_is_what_a_second_best_option_costs_at_the_price_of_the_budget(
    seed: int, share: float, size: float
) -> None:
    losses, costs = problem(seed)
    bounds = Knapsack(np.zeros(costs.shape), costs)
    budget = int(bounds.least + share * (bounds.most - bounds.least))
    found = regret(losses * size, costs, budget)
    assert found == pytest.approx(size * regret(losses, costs, budget), rel=1e-6)
    assert 0 < found <= size * np.ptp(losses)


def test_where_all_options_are_as_good_regret_is_one() -> None:
    _, costs = problem(0)
    assert regret(np.zeros(costs.shape), np.abs(costs), 10**9) == 1.0


@pytest.mark.parametrize("outside", [-1, 0, 10**12])
def test_a_budget_that_cannot_be_met_says_which_could(outside: int) -> None:
    _, costs = problem(0)
    least = Knapsack(np.zeros(costs.shape), costs).least
    with pytest.raises(BudgetError, match=f"expected one between {least}, the least"):
        Relaxation(costs, outside, np.zeros(costs.shape))
