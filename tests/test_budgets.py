import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moopt import budgets
from moopt.budgets import Knapsack
from moopt.errors import BudgetError

shapes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def problems(draw):
    """A table and costs, some options missing, and a budget that something meets."""
    decisions, options = draw(shapes)
    cell = st.tuples(st.floats(0, 10), st.integers(0, 30), st.booleans())
    rows = [[draw(cell) for _ in range(options)] for _ in range(decisions)]
    table = np.array([[loss for loss, _, _ in row] for row in rows])
    costs = np.array([[-1 if gone and j else cost for j, (_, cost, gone) in enumerate(row)] for row in rows])
    least = int(np.where(costs < 0, 99, costs).min(axis=1).sum())
    return table, costs, draw(st.integers(least, least + 60))


def loss(table, choice) -> float:
    return float(sum(row[j] for row, j in zip(table, choice, strict=True)))


def least_loss(table, costs, budget) -> float:
    """The oracle: every choice there is."""
    choices = itertools.product(*(np.flatnonzero(row >= 0) for row in costs))
    within = [c for c in choices if sum(row[j] for row, j in zip(costs, c, strict=True)) <= budget]
    return min(loss(table, choice) for choice in within)


@given(problems())
def test_the_knapsack_is_exact(problem):
    table, costs, budget = problem
    knapsack = Knapsack(table, costs)
    choice = knapsack.at(budget)
    assert knapsack.cost(choice) <= budget
    assert (np.take_along_axis(costs, choice[:, None], axis=1) >= 0).all()
    assert loss(table, choice) == pytest.approx(least_loss(table, costs, budget))


@settings(max_examples=30)
@given(problems())
def test_the_programme_is_as_good_and_keeps_the_budget(problem):
    table, costs, budget = problem
    knapsack = Knapsack(table, costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "LARGEST_PROGRAMME", -1)
        choice = knapsack.at(budget)
    assert knapsack.cost(choice) <= budget
    assert loss(table, choice) == pytest.approx(loss(table, knapsack.at(budget)), abs=1e-6)


def test_costs_too_fine_for_dynamic_programming_go_to_the_programme():
    rng = np.random.default_rng(0)
    costs = np.sort(rng.integers(10**8, 10**9, (30, 4)), axis=1)
    knapsack = Knapsack(np.sort(rng.random((30, 4)))[:, ::-1], costs)
    budget = (knapsack.least + knapsack.most) // 2
    assert 0.999 * budget < knapsack.cost(knapsack.at(budget)) <= budget


def test_more_than_256_options():
    knapsack = Knapsack([np.arange(300.0)[::-1]], [np.arange(300)])
    assert knapsack.at(280).tolist() == [280]


def test_a_budget_nothing_meets_is_refused():
    with pytest.raises(BudgetError, match="budget of 2; the cheapest configuration costs 3"):
        Knapsack([[0.0, 1.0]], [[5, 3]]).at(2)


@pytest.mark.parametrize("budget", ["x", None, float("nan"), float("inf"), True])
def test_a_budget_that_is_no_number_is_refused(budget):
    with pytest.raises(BudgetError, match="expected a finite number"):
        Knapsack([[0.0, 1.0]], [[5, 3]]).at(budget)


@pytest.mark.parametrize(
    ("table", "costs", "message"),
    [
        ([[1.0, 2.0]], [[1]], "shape"),
        ([[float("nan")]], [[1]], "NaN"),
        ([[1.0]], [[-1]], "no option"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table, costs, message: str):
    with pytest.raises(BudgetError, match=message):
        Knapsack(table, costs)


@given(problems())
def test_the_front_is_every_pair_that_nothing_beats(problem):
    table, costs, _ = problem
    table = np.round(table)  # whole losses add up exactly, in any order
    choices = list(itertools.product(*(np.flatnonzero(row >= 0) for row in costs)))
    pairs = {(int(sum(row[j] for row, j in zip(costs, c, strict=True))), loss(table, c)) for c in choices}
    expected = sorted(
        (cost, lost) for cost, lost in pairs if not any(c <= cost and d <= lost for c, d in pairs - {(cost, lost)})
    )
    knapsack = Knapsack(table, costs)
    found = list(zip(*(values.tolist() for values in knapsack.front()), strict=True))
    assert found == expected
    assert all(loss(table, knapsack.at(cost)) == lost for cost, lost in found)


def test_costs_too_fine_for_a_table_have_no_front():
    with pytest.raises(BudgetError, match="Got costs of 999,999,998 units for 1 decisions"):
        Knapsack([[2.0, 1.0, 0.0]], [[1, 2, 10**9 - 1]]).front()
