"""The toy: an exact front with and without interactions, and secrets that are kept."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moopt import pareto
from moopt.budgets import Knapsack
from moopt.errors import ProblemError
from moopt.problem import capabilities
from moopt_problems.synthetic import BitToy


@pytest.mark.parametrize("interaction", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_front_is_that_of_every_configuration(interaction: float, scale: str) -> None:
    problem = BitToy(5, interaction=interaction, scale=scale)  # type: ignore[arg-type]
    configs = (problem.space.decode(row) for row in itertools.product(range(5), repeat=5))
    name = problem.objectives[0].name
    values = np.array([(problem.evaluate(c, problem.fidelity).values[name], problem.known(c)["size"]) for c in configs])
    expected = values[pareto.nondominated(values)]
    found = problem.front()
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], expected[np.argsort(expected[:, 1])])


def test_the_additive_front_is_the_knapsacks() -> None:
    problem = BitToy(20)
    knapsack = Knapsack(problem.sensitivities("", 0), problem.costs())
    for loss, size in problem.front()[::40]:
        choice = knapsack.at(int(size * 8))
        assert problem.sensitivities("", 0)[np.arange(20), choice].sum() == pytest.approx(loss)


def test_an_interaction_of_one_about_doubles_the_loss_at_the_least_width_and_hardly_counts_at_eight() -> None:
    losses = {}
    for w in (0.0, 1.0):
        problem = BitToy(100, interaction=w)
        for label, config in problem.baselines().items():
            losses[label, w] = problem.evaluate(config, problem.fidelity).values["loss"]
    assert 1.5 < losses["2 bits", 1.0] / losses["2 bits", 0.0] < 3
    assert losses["8 bits", 1.0] / losses["8 bits", 0.0] < 1.001


@pytest.mark.parametrize("interaction", [0.0, 2.0])
def test_the_gradient_is_what_one_change_adds(interaction: float) -> None:
    problem = BitToy(6, interaction=interaction)
    config = problem.space.sample(np.random.default_rng(0))
    values, linear, _ = problem.gradient(config, problem.fidelity)
    changed = {**config, "layer3": 8}
    after = problem.evaluate(changed, problem.fidelity).values["loss"]
    assert after - values["loss"] == pytest.approx(linear[3, problem.bits.index(8)])


def test_what_is_hidden_is_hidden() -> None:
    assert {"sensitivities", "gradient"} <= capabilities(BitToy(4))
    assert capabilities(BitToy(4, sensitivities=False)) == {"moves", "costs"}
    counted = BitToy(4, sensitivities="counted")
    assert capabilities(counted) == {"moves", "costs", "sensitivities"}
    assert counted.sensitivity is not None
    assert counted.forward_tokens("sensitivity", counted.sensitivity) == 4
    assert BitToy(4, uniform=False).baselines() == {}


def test_the_log_is_the_logarithm_and_its_reference_the_worst_corner() -> None:
    problem = BitToy(7, scale="log", interaction=1.0)
    worst = problem.evaluate(dict.fromkeys(problem.space.names, 2), problem.fidelity).values["log_loss"]
    plain = BitToy(7, interaction=1.0)
    assert math.exp(worst) == pytest.approx(plain.evaluate(plain.baselines()["2 bits"], plain.fidelity).values["loss"])
    assert problem.objectives[0].reference == pytest.approx(worst)
    assert problem.objectives[1].reference == problem.known(dict.fromkeys(problem.space.names, 8))["size"]


def test_arguments_make_the_same_toy() -> None:
    problem = BitToy(5, (2, 4), 1.0, 3, "log", False, False)
    again = BitToy(**problem.arguments())
    np.testing.assert_array_equal(problem.front(), again.front())


def test_a_scale_there_is_none_of_is_refused() -> None:
    with pytest.raises(ProblemError, match="expected 'linear' or 'log'"):
        BitToy(4, scale="cubic")  # type: ignore[arg-type]
