import numpy as np
import pytest
from scipy.optimize import check_grad

from moopt.algorithms.gaussian_process import GaussianProcess

RNG = np.random.default_rng(0)
INPUTS = RNG.random((30, 4))
TARGETS = np.sin(4 * INPUTS[:, 0]) + INPUTS[:, 1] ** 2
SCALED = (TARGETS - TARGETS.mean()) / TARGETS.std()


@pytest.fixture
def process() -> GaussianProcess:
    return GaussianProcess(INPUTS, SCALED)


def test_it_predicts_and_knows_which_inputs_matter(process: GaussianProcess):
    unseen = RNG.random((50, 4))
    truth = (np.sin(4 * unseen[:, 0]) + unseen[:, 1] ** 2 - TARGETS.mean()) / TARGETS.std()
    mean, deviation = process.predict(unseen)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.15
    assert (np.abs(mean - truth) < 4 * deviation + 0.1).all()
    assert process._scales[:2].max() < process._scales[2:].min()


def test_its_gradient_is_that_of_its_loss(process: GaussianProcess):
    at = np.array([0.3, -0.2, 1.0, 0.5, -3.0])
    error = check_grad(lambda x: process._loss(x, INPUTS, SCALED)[0], lambda x: process._loss(x, INPUTS, SCALED)[1], at)
    assert error < 1e-4


def test_improvement_is_expected_where_it_is_low_or_unknown_and_not_where_a_trial_is_under_way(
    process: GaussianProcess,
):
    candidates = RNG.random((200, 4))
    promise = process.improvement(candidates)
    best = candidates[[int(promise.argmax())]]
    mean, deviation = process.predict(best)
    draws = np.random.default_rng(1).normal(mean, deviation, 200_000)
    assert promise.max() == pytest.approx(np.maximum(SCALED.min() - draws, 0).mean(), rel=0.03)
    process.believe(best)
    assert process.improvement(best)[0] < 0.3 * promise.max()
