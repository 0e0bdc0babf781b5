"""Integer programmes against every choice there is: one and two resources, with ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moopt.errors import BudgetError
from moopt.programmes import Programme


@st.composite
def programmes(draw, resources):
    """A table, tables of costs by name, ties, and budgets that may be kept or not."""
    decisions, options = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = lambda element: np.array(  # noqa: E731
        draw(st.lists(element, min_size=decisions * options, max_size=decisions * options))
    ).reshape(decisions, options)
    table = cells(st.floats(-10, 10))
    gone = cells(st.sampled_from([False, False, False, True]))
    gone[:, 0] = False
    table[gone & cells(st.booleans())] = np.inf
    costs = {name: np.where(gone, -1, cells(st.integers(0, 30))) for name in resources}
    ties = draw(st.lists(st.lists(st.integers(0, decisions - 1), min_size=1, max_size=3), max_size=2))
    return table, costs, ties, {name: draw(st.integers(0, 30 * decisions)) for name in resources}


def total(table, choice):
    return sum(row[j] for row, j in zip(table, choice, strict=True))


def feasible(table, costs, ties):
    """Every choice there is, with its loss and what it takes."""
    for choice in itertools.product(*(np.flatnonzero(np.isfinite(row)) for row in table)):
        there = all(row[j] >= 0 for each in costs.values() for row, j in zip(each, choice, strict=True))
        if there and all(len({choice[i] for i in tie}) == 1 for tie in ties):
            yield choice, total(table, choice), {name: int(total(each, choice)) for name, each in costs.items()}


def within(takes, budgets):
    return all(takes[name] <= budget for name, budget in budgets.items())


@settings(max_examples=60, deadline=None)
@given(programmes(["bytes"]) | programmes(["bytes", "latency"]) | programmes(["bytes", "latency", "energy"]))
def test_a_programme_is_exact_and_says_what_is_feasible(problem):
    table, costs, ties, budgets = problem
    programme, every = Programme(table, costs, ties), list(feasible(table, costs, ties))
    kept = [loss for _, loss, takes in every if within(takes, budgets)]
    if kept:
        choice = programme.at(budgets)
        assert within(programme.costs(choice), budgets)
        assert any(choice.tolist() == list(c) for c, *_ in every)
        assert total(table, choice) == pytest.approx(min(kept), abs=1e-7)
        return
    with pytest.raises(BudgetError, match="no configuration keeps that") as refused:
        programme.at(budgets)
    for name in costs:
        amounts = [takes[name] for *_, takes in every]
        others = {other: budget for other, budget in budgets.items() if other != name}
        beside = [takes[name] for *_, takes in every if within(takes, others)]
        said = f"{name} takes {min(amounts)} to {max(amounts)}"
        if others:
            least = f"at least {min(beside)} within the other budgets" if beside else "the other budgets cannot be kept"
            said += f", {least}" if beside else f", and {least}"
        assert said in str(refused.value)


def test_latency_decides_between_options_of_equal_bytes():
    table = [[3.0, 1.0, 0.0], [3.0, 2.0, 0.0]]
    resources = {"bytes": [[1, 2, 2], [1, 2, 2]], "ns": [[100, 100, 900], [100, 100, 900]]}
    programme = Programme(table, resources)
    assert programme.at({"bytes": 4, "ns": 2000}).tolist() == [2, 2]
    assert programme.at({"bytes": 4, "ns": 1000}).tolist() == [1, 2]
    assert programme.at({"bytes": 3, "ns": 1000}).tolist() == [2, 0]
    assert programme.costs([2, 0]) == {"bytes": 3, "ns": 1000}


def test_tied_decisions_take_the_same_option():
    table, costs = [[0.0, 5.0], [9.0, 0.0], [0.0, 5.0]], {"bytes": [[1, 1]] * 3}
    assert Programme(table, costs).at({"bytes": 3}).tolist() == [0, 1, 0]
    assert Programme(table, costs, ties=[(0, 1)]).at({"bytes": 3}).tolist() == [1, 1, 0]
    assert Programme(table, costs, ties=[(0, 1), (1, 2)]).at({"bytes": 3}).tolist() == [0, 0, 0]


@pytest.mark.parametrize("decisions", [5, 60])
def test_costs_as_fine_as_bytes_and_nanoseconds_are_never_exceeded(decisions):
    rng = np.random.default_rng(decisions)
    size = np.sort(rng.integers(10**6, 10**9, (decisions, 4)), axis=1)
    time = np.sort(rng.integers(10**3, 10**8, (decisions, 4)), axis=1)[:, ::-1]
    programme = Programme(np.sort(rng.random((decisions, 4)))[:, ::-1], {"bytes": size, "ns": time})
    budgets = {"bytes": int(size.mean(1).sum()), "ns": int(time.mean(1).sum())}
    found = programme.costs(programme.at(budgets))
    assert within(found, budgets)
    assert found["bytes"] > 0.9 * budgets["bytes"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 10**7))
@settings(max_examples=60, deadline=None)
def test_options_that_differ_by_units_of_hundreds_of_millions_are_told_apart(seed, apart):
    rng = np.random.default_rng(seed)
    base = rng.integers(10**8, 10**9, 5)
    ns = np.stack([base, base + rng.integers(0, apart, 5), 2 * base + rng.integers(0, apart, 5)], axis=1)
    table, resources = rng.random((5, 3)) - np.arange(3), {"ns": ns, "bytes": rng.integers(0, 5, (5, 3))}
    programme = Programme(table, resources)
    budgets = programme.costs(rng.integers(0, 3, 5))
    choice = programme.at(budgets)
    assert within(programme.costs(choice), budgets)
    kept = [loss for _, loss, takes in feasible(table, resources, ()) if within(takes, budgets)]
    assert total(table, choice) == pytest.approx(min(kept), abs=1e-6)


def test_nothing_to_decide_takes_nothing():
    assert Programme(np.zeros((0, 2)), {"bytes": np.zeros((0, 2), int)}).at({"bytes": 0}).tolist() == []


@pytest.mark.parametrize("budget", ["x", None, float("nan"), float("inf"), True])
def test_budgets_that_are_no_numbers_are_refused(budget):
    with pytest.raises(BudgetError, match="of bytes; expected a finite number"):
        Programme([[1.0]], {"bytes": [[1]]}).at({"bytes": budget})


def test_budgets_beyond_all_costs_bind_nothing_and_fractions_are_rounded_down():
    programme = Programme([[1.0, 0.0]], {"bytes": [[1, 3]]})
    assert [programme.at({"bytes": b}).tolist() for b in (10**30, 3.0, 2.9)] == [[1], [1], [0]]
    with pytest.raises(BudgetError, match="Got bytes <= -1"):
        programme.at({"bytes": -1})
    with pytest.raises(BudgetError, match="bytes takes 1 to 3"):
        programme.at({"bytes": -(10**30)})


@pytest.mark.parametrize(
    ("table", "resources", "ties", "message"),
    [
        ([[1.0]], {}, (), "no resources"),
        ([[1.0, 2.0]], {"bytes": [[1]]}, (), "shape"),
        ([[1.0]], {"ns": [[1.5]]}, (), "whole numbers"),
        ([[float("nan")]], {"bytes": [[1]]}, (), "NaN"),
        ([[1.0], [1.0]], {"bytes": [[1], [-1]]}, (), "decision 1;"),
        ([[1.0, 2.0]] * 2, {"bytes": [[1, -1], [-1, 1]]}, [(0, 1)], "decision 0, 1;"),
        ([[1.0]], {"bytes": [[1]]}, [(0, 1)], "rows of decisions, 0 to 0"),
        ([[1.0]], {"bytes": [[1]]}, [("a",)], "rows of decisions, 0 to 0"),
        ([[1.0]], {"bytes": [[1]]}, [(0.5,)], "rows of decisions, 0 to 0"),
        ([["a"]], {"bytes": [[1]]}, (), "table cannot be read as numbers"),
        ([[1.0]], {"bytes": [["a"]]}, (), "costs cannot be read as numbers"),
        ([[1.0, 2.0], [1.0]], {"bytes": [[1]]}, (), "table cannot be read as numbers"),
        ([[1.0]], {"bytes": [[float("nan")]]}, (), "cost nan; expected whole numbers"),
        ([[1.0]] * 2, {"bytes": [[2**62]] * 2}, (), "too large to be added up"),
    ],
)
def test_programmes_that_make_no_sense_are_refused(table, resources, ties, message):
    with pytest.raises(BudgetError, match=message):
        Programme(table, resources, ties)


def test_every_resource_needs_a_budget():
    with pytest.raises(BudgetError, match="Got budgets of bytes; expected one of each: bytes, ns"):
        Programme([[1.0]], {"bytes": [[1]], "ns": [[1]]}).at({"bytes": 1})
