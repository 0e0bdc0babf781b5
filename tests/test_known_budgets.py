"""Bounds on known objectives: met exactly or from below, never exceeded, and refused in their own unit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moopt
from moopt import cli_targets
from moopt.algorithms import RCO, SequentialKnapsack
from moopt.budgets import Knapsack
from moopt.errors import AlgorithmError, BudgetError
from moopt.known_budgets import amounts
from moopt_problems.synthetic import BitToy


class Bytes(moopt.Problem):
    """Decisions with costs, and a size of what they cost and a rest, in any unit."""

    objectives = (moopt.Objective("loss"), moopt.Objective("size", unit="MB", known=True))

    def __init__(self, costs: list[list[int]], rest: int, unit: float) -> None:
        self._costs, self._rest, self._unit = np.array(costs, dtype=np.int64), rest, unit
        self.space = moopt.Space({f"d{i}": moopt.Integer(0, len(row) - 1) for i, row in enumerate(costs)})

    def costs(self) -> Any:
        return self._costs

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        spent = sum(int(row[config[name]]) for name, row in zip(self.space.names, self._costs, strict=True))
        return {"size": (spent + self._rest) / self._unit}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({"loss": float(sum(config.values()))})

    def choices(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(len(row)) for row in self._costs)))

    def size(self, choice: Any) -> float:
        return self.known(dict(zip(self.space.names, map(int, choice), strict=True)))["size"]


@st.composite
def bounded(draw: st.DrawFn) -> tuple[Bytes, np.ndarray[Any, Any], float]:
    """A small problem, losses, and a bound: a size that something has, one beside it, or any in between."""
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    unit = draw(st.sampled_from([1, 13_824, 7_919_003]))
    costs = [[unit * draw(st.integers(0, 60)) for _ in range(shape[1])] for _ in range(shape[0])]
    costs[0][1] = costs[0][0] + unit * draw(st.integers(1, 60))
    problem = Bytes(
        costs, draw(st.integers(0, 10**9)), draw(st.sampled_from([1.0, 3.0, 8e3, 1e6, 2.0**20, 106168320.0]))
    )
    sizes = sorted(map(problem.size, problem.choices()))
    at = draw(st.sampled_from(sizes))
    bounds = [at, math.nextafter(at, -math.inf), math.nextafter(at, math.inf), draw(st.floats(sizes[0], sizes[-1]))]
    bound = min(max(draw(st.sampled_from(bounds)), sizes[0]), sizes[-1])
    losses = np.random.default_rng(draw(st.integers(0, 99))).random(shape)
    return problem, losses, bound


@given(bounded())
def test_within_the_cost_is_exactly_what_is_within_the_bound(case: tuple[Bytes, Any, float]) -> None:
    problem, losses, bound = case
    (amount,) = amounts(problem, {"size": [bound]})
    knapsack = Knapsack(losses, problem.costs())
    for choice in problem.choices():
        assert (problem.size(choice) <= bound) == (knapsack.cost(choice) <= amount)
    best = knapsack.at(amount)
    assert problem.size(best) <= bound
    within = [c for c in problem.choices() if problem.size(c) <= bound]
    assert losses[np.arange(len(losses)), best].sum() == pytest.approx(
        min(losses[np.arange(len(losses)), list(c)].sum() for c in within)
    )
    dearest = Knapsack(-problem.costs(), problem.costs()).at(amount)
    assert problem.size(dearest) == max(map(problem.size, within))


def test_not_a_byte_is_lost_to_rounding() -> None:
    costs = np.arange(500)[None] + np.array([[79_999_000], [750]])
    problem = Bytes(costs.tolist(), 0, 1e6)
    spent = list(range(80_000_000, 80_000_400))
    assert amounts(problem, {"size": [float(f"80.{cost % 10**6:06}") for cost in spent]}) == spent


def test_a_search_keeps_to_a_bound_in_kilobytes_and_comes_up_to_it() -> None:
    problem = BitToy(8)
    for algorithm in (RCO({"size": 100.5}, steps=20, samples=1), SequentialKnapsack(budgets={"size": [100.5, 80.0]})):
        study = moopt.Study("toy", problem, algorithm).run(30)
        gradients = [event.job for event in study.history.events if event.job.kind == "gradient"]
        assert {job.note["budget"] for job in gradients} <= {800, 640}
        assert any(job.note["budget"] == 800 for job in gradients)
        assert any(98 < trial.values["size"] <= 100.5 for trial in study.history.trials)


def test_the_command_line_takes_bounds_by_name(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    study = cli_targets.study("bit-toy", {"algorithm": "rco@steps=5,samples=1,budgets.size=300,320.5", "layers": 20})
    assert study.algorithm.settings()["budgets"] == {"size": [300.0, 320.5]}
    decided = [trial.values["size"] for trial in study.run(9).history.trials if trial.label is None]
    assert decided
    assert 300 < decided[0] <= 320.5


@pytest.mark.parametrize("make", [RCO, lambda budgets: SequentialKnapsack(budgets=budgets)], ids=["rco", "knapsack"])
def test_where_a_bound_leaves_one_configuration_it_is_evaluated(make: Any) -> None:
    problem = BitToy(6, uniform=False)
    least, most = (float(problem.costs()[:, column].sum()) / 8 for column in (0, -1))
    study = moopt.Study("toy", problem, make({"size": [least, (least + most) // 2, most]})).run(8)
    sizes = [trial.values["size"] for trial in study.history.trials]
    assert {least, most} <= set(sizes)


def test_bounds_are_stored_with_the_study(tmp_path: Any) -> None:
    path = tmp_path / "toy.journal"
    first = moopt.Study("toy", BitToy(8), RCO({"size": [100, 90]}, steps=10, samples=1), path).run(8).history
    again = moopt.Study("toy", BitToy(8), RCO({"size": (100.0, 90.0)}, steps=10, samples=1), path).run(12).history
    assert [t.config for t in again.trials][:8] == [t.config for t in first.trials]


class Measured(BitToy):
    """Knows besides its size what the sizes do not decide."""

    objectives = (*BitToy.objectives, moopt.Objective("widest", known=True))

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {**super().known(config), "widest": float(max(config.values()))}


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({"size": [1.0]}, r"budget of 1.0 kB of size; no configuration is within it: expected one from 58.0 kB"),
        ({"size": [1e9]}, r"every configuration is within it: expected one from 58.0 kB, .*, to 232.0 kB, the largest"),
        ({"loss": [1.0]}, "'loss', which is no known objective of Measured; expected one that the costs decide: size"),
        ({"widest": [4]}, "'widest', which is not decided by the costs of Measured; .* the costs decide: size"),
    ],
)
def test_bounds_that_cannot_be_met_say_which_could(budgets: dict[str, list[float]], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        moopt.Study("toy", Measured(6), RCO(budgets)).run(5)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({"size": "80 MB"}, "budgets of 'size' are '80 MB'; expected numbers"),
        ({"size": []}, "expected numbers"),
        ({"size": [math.nan]}, "expected numbers"),
        ({"size": True}, "expected numbers"),
        ({}, "The budgets are empty"),
    ],
)
def test_bounds_that_are_no_numbers_are_refused(budgets: Any, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        RCO(budgets)


@pytest.mark.parametrize("bound", [58, 58.5, 232])
def test_a_bound_at_an_end_alone_leaves_nothing_to_search(bound: float) -> None:
    with pytest.raises(AlgorithmError, match=rf"RCO has nothing to search: within {{'size': \[{bound:.1f}\]}}"):
        moopt.Study("toy", Measured(6), RCO({"size": [bound]})).run(5)


@pytest.mark.parametrize("beside", [1, 10**12])
def test_a_cost_that_cannot_be_had_is_refused_beside_one_that_can(beside: int) -> None:
    with pytest.raises(AlgorithmError, match=rf"RCO has the budgets \[{beside}\]; expected costs between"):
        moopt.Study("toy", Measured(6), RCO([beside, 1_000])).run(5)


def test_the_order_of_budgets_is_of_no_matter() -> None:
    assert RCO({"size": [150, 120.0, 150]}).settings() == RCO({"size": np.array([120.0, 150])}).settings()
    assert RCO({"size": np.array(150.0)}).settings() == RCO({"size": 150}).settings()
    assert RCO([3, 2, 3]).settings() == RCO([2, 3]).settings()
