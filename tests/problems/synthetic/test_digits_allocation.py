"""Tiny networks with tables and gradients: slopes equal finite differences, tables rank, minibatches nest."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import moopt
from moopt.errors import ProblemError
from moopt_problems.synthetic import DigitsAllocation


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def problem(request: pytest.FixtureRequest) -> DigitsAllocation:
    made = DigitsAllocation(request.param)
    made.setup(moopt.Resources())
    return made


def test_fewer_images_are_the_first_of_more_and_draws_are_others(problem: DigitsAllocation) -> None:
    config = dict.fromkeys(problem.space.names, 3)
    few, many, drawn = (problem.evaluate(config, moopt.Fidelity(*f)) for f in ((72, 0), (576, 0), (72, 5)))
    assert few.samples is not None
    assert many.samples is not None
    assert few.samples["kl"] == pytest.approx(many.samples["kl"][:8], rel=1e-4, abs=1e-7)
    assert drawn.samples != few.samples
    assert many.values["kl"] == pytest.approx(np.mean(many.samples["kl"]))
    assert many.variances is not None
    assert many.variances["kl"] == pytest.approx(np.var(many.samples["kl"], ddof=1) / 64)
    again = pickle.loads(pickle.dumps(problem)).evaluate(config, moopt.Fidelity(72, 5))
    assert again.samples == drawn.samples


def test_slopes_equal_finite_differences(problem: DigitsAllocation) -> None:
    config = dict.fromkeys(problem.space.names, 4)
    fidelity = moopt.Fidelity(576, 3)
    values, linear, curvature = problem.gradient(config, fidelity)
    images, step = problem._drawn(576, 1003), 0.02
    assert (linear[:, 2] == 0).all()
    assert (curvature >= 0).all()
    measured = []
    for name in problem.space.names:
        change = problem._matrices[name, 2] - problem._matrices[name, 4]
        losses = []
        for side in (step, -step):
            problem._become(config)
            weight = problem._linears[name].weight
            weight.data = (weight.data + side * change).clone()
            losses.append(float(problem._divergences(images).double().mean()))
        measured.append((losses[0] - losses[1]) / (2 * step))
    off = np.linalg.norm(linear[:, 0] - measured) / np.linalg.norm(measured)
    assert off < 0.1, "single ones may cross a kink of the network, all together not"
    assert values["kl"] > 0


@pytest.mark.parametrize("method", ["fisher", "fisher-columns"])
def test_sampled_fisher_tells_large_changes_from_small_ones_as_measuring_does(
    problem: DigitsAllocation, method: str
) -> None:
    estimated, measured = (problem.sensitivities(each, 2_304) for each in (method, "one-layer"))
    assert estimated.shape == measured.shape == problem.costs().shape
    ranks = [np.argsort(np.argsort(each.ravel())) for each in (estimated, measured)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


def test_traces_weigh_errors_that_fall_with_the_width(problem: DigitsAllocation) -> None:
    table = problem.sensitivities("hawq-v2", 2_304)
    assert (table >= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()
    assert (table[:, 0] > 0).mean() > 0.5


def test_an_image_is_nine_tokens_and_what_is_left_over_of_one_is_not_used(problem: DigitsAllocation) -> None:
    config = dict.fromkeys(problem.space.names, 3)
    whole, rest = (problem.evaluate(config, moopt.Fidelity(tokens)) for tokens in (90, 95))
    assert whole.samples is not None
    assert len(whole.samples["kl"]) == 10
    assert whole.samples == rest.samples
    images = problem._splits["search"][0][:9].view(9, 8, 8)
    down, right = images[0, :-1], images[0, :, :-1]
    assert any((moved[1:] == down).all() and (moved[0] == 0).all() for moved in images)
    assert any((moved[:, 1:] == right).all() and (moved[:, 0] == 0).all() for moved in images)


def test_what_does_not_fit_is_refused() -> None:
    for settings in ({"network": "cnn"}, {"bits": (3, 9)}, {"sensitivities": "guess"}, {"tokens": 1}, {"draw": -1}):
        with pytest.raises(ProblemError, match="xpected"):
            DigitsAllocation(**settings)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="no table 'guess'"):
        DigitsAllocation("mlp").sensitivities("guess", 144)
