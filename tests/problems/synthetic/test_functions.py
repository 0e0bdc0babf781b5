"""Test functions: the libraries' values, references that hold, and fronts that nothing beats."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.errors import ProblemError
from moopt.jobs import Job, perform
from moopt_problems.synthetic import BotorchFunction, PymooFunction, named
from moopt_problems.synthetic.pymoo_function import FUNCTIONS


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_candidate_beats_the_front_and_the_maximum_holds(function: str) -> None:
    problem = pickle.loads(pickle.dumps(PymooFunction(function)))
    rng = np.random.default_rng(0)
    found = [problem.evaluate(problem.space.sample(rng), problem.fidelity).values for _ in range(50)]
    feasible = [v for v in found if all(v[c.name] <= 0 for c in problem.constraints)]
    values = np.array([[v[o.name] for o in problem.objectives] for v in feasible]).reshape(-1, len(problem.objectives))
    front = problem.front()
    reference = np.array([o.reference for o in problem.objectives])
    assert (front < reference).all()
    assert not any((point < front - 1e-6).all(axis=1).any() for point in values)
    assert pareto.hypervolume(front[:: max(1, len(front) // 500)], reference) <= problem.maximum_hypervolume() * 1.001


@pytest.mark.parametrize(
    ("function", "maximum"), [("zdt1", 0.21 + 2 / 3), ("zdt2", 0.21 + 1 / 3), ("dtlz2", 1.331 - np.pi / 6)]
)
def test_hypervolumes_are_those_of_the_closed_forms(function: str, maximum: float) -> None:
    assert PymooFunction(function).maximum_hypervolume() == pytest.approx(maximum, rel=1e-4)


def test_pymoo_and_botorch_agree_on_what_both_have() -> None:
    one, other = PymooFunction("dtlz2", 6, 2), BotorchFunction("DTLZ2", 6, 2)
    config = one.space.sample(np.random.default_rng(0))
    assert one.evaluate(config, one.fidelity).values == pytest.approx(other.evaluate(config, other.fidelity).values)
    assert one.maximum_hypervolume() == pytest.approx(other.maximum_hypervolume())


def test_constraints_hold_where_the_paper_says_so() -> None:
    problem, rng = PymooFunction("bnh"), np.random.default_rng(1)
    for config in (problem.space.sample(rng) for _ in range(20)):
        found = problem.evaluate(config, problem.fidelity).values
        x, y = config["x0"], config["x1"]
        feasible = (x - 5) ** 2 + y**2 <= 25 and (x - 8) ** 2 + (y + 3) ** 2 >= 7.7
        assert all(found[c.name] <= c.bound for c in problem.constraints) == feasible


def test_botorchs_slack_is_turned_into_a_bound() -> None:
    problem = pickle.loads(pickle.dumps(BotorchFunction("ConstrainedBraninCurrin")))
    outcome = perform(problem, Job(0, {"x0": 0.5, "x1": 0.5}, fidelity=problem.fidelity))
    assert isinstance(outcome, moopt.Evaluation)
    assert set(outcome.values) == {"f0", "f1", "g0"}
    assert (outcome.values["g0"] <= 0) == problem.botorch.is_feasible(problem.botorch.bounds.mean(0)[None]).item()
    assert problem.maximum_hypervolume() == pytest.approx(608.4, rel=1e-3)
    assert BotorchFunction("OSY").maximum_hypervolume() is None


def test_a_name_alone_makes_a_function_and_arguments_make_it_again() -> None:
    made = named.dtlz7()
    again = PymooFunction(**made.arguments())
    assert made.space == again.space
    assert [o.reference for o in made.objectives] == [1.1, 1.1, pytest.approx(6.6)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PymooFunction("zdt9"), "no test function 'zdt9'; expected one of zdt1"),
        (lambda: PymooFunction("zdt1", 30, 3), "zdt1 has 2 objectives; got objectives=3"),
        (lambda: PymooFunction("dtlz5", 12, 4), "no known front with more than 3"),
        (lambda: PymooFunction("bnh", 3), "bnh has 2 variables; got variables=3"),
        (lambda: BotorchFunction("Nothing"), "no test function 'Nothing'; expected one of BraninCurrin"),
        (lambda: BotorchFunction("BraninCurrin", variables=3), "BraninCurrin has no open dim"),
    ],
)
def test_what_is_asked_wrongly_is_refused(make: object, said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        make()  # type: ignore[operator]
