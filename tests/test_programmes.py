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
    ],
)
def test_programmes_that_make_no_sense_are_refused(table, resources, ties, message):
    with pytest.raises(BudgetError, match=message):
        Programme(table, resources, ties)


def test_every_resource_needs_a_budget():
    with pytest.raises(BudgetError, match="Got budgets of bytes; expected one of each: bytes, ns"):
        Programme([[1.0]], {"bytes": [[1]], "ns": [[1]]}).at({"bytes": 1})
