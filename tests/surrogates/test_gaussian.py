"""The general surrogate: any kind of variable, errors given or not."""

import numpy as np
import pytest

from moopt.errors import SurrogateError
from moopt.space import Choice, Float, Integer, Ordinal, Space
from moopt.surrogates import Data, fit
from moopt.surrogates.gaussian import Encoding, GaussianProcess, LogGaussianProcess

MIXED = Space({"x": Float(-1, 1), "n": Integer(0, 50), "bits": Ordinal(2, 3, 4), "kind": Choice("a", "b", "c")})


def sampled(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([MIXED.encode(MIXED.sample(rng)) for _ in range(n)])


def smooth(codes: np.ndarray) -> np.ndarray:
    return np.exp(codes[:, 0]) + (codes[:, 1] / 50 - 0.4) ** 2 + codes[:, 2] / 3 + (codes[:, 3] == 1)


def test_a_choice_has_a_column_for_each_value() -> None:
    features = Encoding(MIXED)(sampled(5))
    assert features.shape == (5, 6)
    np.testing.assert_allclose(features[:, 3:].sum(axis=1), 1)
    assert (features >= 0).all()
    assert (features <= 1).all()


@pytest.mark.parametrize("kind", [GaussianProcess, LogGaussianProcess])
def test_it_predicts_what_it_has_not_seen(kind: type) -> None:
    codes, new = sampled(50), sampled(50, 1)
    surrogate = kind(Data(codes, smooth(codes)), Encoding(MIXED))
    assert np.abs(surrogate.mean(new) - smooth(new)).mean() < 0.1


def test_draws_are_joint_and_in_the_objectives_unit() -> None:
    codes = sampled(30)
    surrogate = LogGaussianProcess(Data(codes, smooth(codes)), Encoding(MIXED))
    draws = surrogate.sampled(codes, np.random.default_rng(0).standard_normal((64, 30)))
    assert draws.shape == (64, 30)
    np.testing.assert_allclose(draws.mean(axis=0), smooth(codes), rtol=0.15)


def test_measured_errors_are_believed() -> None:
    codes, rng = sampled(60), np.random.default_rng(0)
    noisy = smooth(codes) + 0.5 * rng.standard_normal(60)
    told = GaussianProcess(Data(codes, noisy, np.full(60, 0.25)), Encoding(MIXED))
    sure = GaussianProcess(Data(codes, noisy, np.full(60, 1e-8)), Encoding(MIXED))
    assert np.abs(told.mean(codes) - smooth(codes)).mean() < 0.8 * np.abs(sure.mean(codes) - smooth(codes)).mean()


def test_more_data_needs_no_new_fit() -> None:
    codes = sampled(50)
    data = Data(codes, smooth(codes))
    more = GaussianProcess(Data(codes[:25], smooth(codes[:25])), Encoding(MIXED)).conditioned(data)
    np.testing.assert_allclose(more.mean(codes), smooth(codes), atol=0.1)


def test_the_better_prediction_is_chosen() -> None:
    codes = sampled(40)
    assert isinstance(fit(Data(codes, np.exp(4 * smooth(codes))), MIXED), LogGaussianProcess)
    assert type(fit(Data(codes, smooth(codes) - 10), MIXED)) is GaussianProcess


def test_what_cannot_be_modelled_says_so() -> None:
    codes = sampled(5)
    with pytest.raises(SurrogateError, match="too large"):
        fit(Data(codes, np.full(5, np.inf)), MIXED)


def test_features_that_fail_are_no_surrogate() -> None:
    def ragged(codes: np.ndarray) -> np.ndarray:
        raise ValueError("inhomogeneous shape")

    codes = sampled(5)
    with pytest.raises(SurrogateError, match="inhomogeneous shape"):
        fit(Data(codes, smooth(codes)), MIXED, features=ragged, additive=False)


def test_an_error_that_was_not_measured_is_like_the_others() -> None:
    codes = sampled(4)
    data = Data.of(codes, smooth(codes), np.array([0.1, np.nan, 0.3, np.nan]))
    assert data.errors is not None
    np.testing.assert_allclose(data.errors, [0.1, 0.2, 0.3, 0.2])
    assert Data.of(codes[:1], smooth(codes[:1]), np.array([0.1])).errors == pytest.approx([0.1])
    assert Data.of(codes, smooth(codes), np.full(4, np.nan)).errors is None
