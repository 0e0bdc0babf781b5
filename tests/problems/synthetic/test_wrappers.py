"""Noise that repeats and can be scored without, and grids of continuous problems."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import moopt
from moopt.errors import ProblemError
from moopt.problem import capabilities
from moopt_problems.synthetic import BitToy, Noisy, Ordinalised, PymooFunction


def drawn(problem: Noisy, count: int = 300) -> np.ndarray:
    """The errors of the first objective at random candidates, in units of their standard deviation."""
    rng = np.random.default_rng(5)
    name = problem.objectives[0].name
    errors = []
    for _ in range(count):
        config = problem.space.sample(rng)
        noisy, true = problem.evaluate(config, problem.fidelity), problem.truth(config, problem.fidelity)
        errors.append((noisy.values[name] - true.values[name]) / problem.deviations[name])
    return np.array(errors)


def test_errors_are_normal_and_as_large_as_said() -> None:
    errors = drawn(Noisy(PymooFunction("zdt1", 4), share=0.1))
    assert abs(errors.mean()) < 0.2
    assert 0.85 < errors.std() < 1.15


def test_the_same_seed_and_candidate_give_the_same_noise_in_another_process_too() -> None:
    problem = Noisy(BitToy(5))
    config = problem.baselines()["4 bits"]
    again = pickle.loads(pickle.dumps(problem))
    assert again.evaluate(config, problem.fidelity) == problem.evaluate(config, problem.fidelity)
    assert problem.reseeded(1).evaluate(config, problem.fidelity) != problem.evaluate(config, problem.fidelity)
    assert problem.reseeded(1).ranges == problem.ranges


def test_what_is_known_stays_exact_and_what_would_tell_the_truth_is_hidden() -> None:
    toy = BitToy(5)
    problem = Noisy(toy)
    config = problem.baselines()["2 bits"]
    assert problem.known(config) == toy.known(config)
    assert set(problem.ranges) == {"loss"}
    assert capabilities(problem) == {"moves", "costs"}
    np.testing.assert_array_equal(problem.front(), toy.front())  # type: ignore[attr-defined]


def test_variances_are_given_if_asked_for() -> None:
    config = BitToy(5).baselines()["2 bits"]
    told, silent = (
        Noisy(BitToy(5), 0.2, ranges={"loss": 10.0}),
        Noisy(BitToy(5), 0.2, given=False, ranges={"loss": 10.0}),
    )
    assert told.evaluate(config, told.fidelity).variances == {"loss": pytest.approx(4.0)}
    assert silent.evaluate(config, silent.fidelity).variances is None
    assert silent.evaluate(config, silent.fidelity).values == told.evaluate(config, told.fidelity).values


def test_constraints_have_no_noise() -> None:
    problem = Noisy(PymooFunction("bnh"))
    config = problem.space.sample(np.random.default_rng(0))
    found, true = problem.evaluate(config, problem.fidelity), problem.truth(config, problem.fidelity)
    assert found.values["g0"] == true.values["g0"]
    assert found.values["f0"] != true.values["f0"]


def test_noise_of_nothing_is_refused() -> None:
    with pytest.raises(ProblemError, match="share is 0; expected a number above 0"):
        Noisy(BitToy(4), share=0)


def test_a_grid_has_the_ends_and_the_same_values() -> None:
    problem = Ordinalised(PymooFunction("dtlz2", 4, 2), levels=5)
    assert problem.space.size == 5**4
    assert problem.space["x0"] == moopt.Ordinal(0.0, 0.25, 0.5, 0.75, 1.0)
    config = problem.space.sample(np.random.default_rng(0))
    assert problem.evaluate(config, problem.fidelity) == problem.problem.evaluate(config, problem.fidelity)
    assert Ordinalised(BitToy(4)).space == BitToy(4).space
    with pytest.raises(ProblemError, match="levels is 1"):
        Ordinalised(PymooFunction("zdt1"), 1)
