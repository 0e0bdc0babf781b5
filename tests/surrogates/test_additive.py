"""Additive surrogates: they find what each option adds, and know how sure they are."""

import numpy as np
import pytest

from moopt.space import Choice, Ordinal, Space
from moopt.surrogates import Data, fit
from moopt.surrogates.options import Options
from moopt.surrogates.sums import LinearAdditive, LogAdditive

SPACE = Space({**{f"layer{i}": Ordinal(2, 3, 4, 8) for i in range(6)}, "kind": Choice("a", "b")})


def sampled(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([SPACE.encode(SPACE.sample(rng)) for _ in range(n)])


def losses(codes: np.ndarray) -> np.ndarray:
    """A sum of positive parts that fall fast over the levels; the choice doubles nothing, it adds."""
    scales = np.array([0.1, 3.0, 0.5, 1.0, 10.0, 0.05])
    return (scales * 4.0 ** -codes[:, :6]).sum(axis=1) + 0.3 * codes[:, 6]


@pytest.mark.parametrize("kind", [LogAdditive, LinearAdditive])
def test_it_predicts_what_it_has_not_seen(kind: type) -> None:
    codes, new = sampled(60), sampled(40, 1)
    surrogate = kind(Data(codes, losses(codes)), Options(SPACE))
    errors = np.abs(surrogate.mean(new) - losses(new))
    assert np.median(errors / losses(new)) < 0.05
    covariance = surrogate.posterior(new)[1]
    assert (np.diag(covariance) > -1e-9).all()


def test_its_errors_are_as_large_as_it_says() -> None:
    def bent(codes: np.ndarray) -> np.ndarray:
        return losses(codes) * np.exp(0.3 * np.sin(codes.sum(axis=1)))

    codes, new = sampled(50), sampled(200, 1)
    mean, covariance = LogAdditive(Data(codes, bent(codes)), Options(SPACE)).posterior(new)
    standard = (np.log(bent(new)) - mean) / np.sqrt(np.diag(covariance))
    assert 0.5 < np.sqrt(np.mean(standard**2)) < 2.0


def test_a_prior_table_stands_in_for_data() -> None:
    codes, new = sampled(4), sampled(40, 1)
    options = Options(SPACE)
    table = np.full((7, 4), np.inf)
    for i, b in zip(options.owner, options.level, strict=True):
        row = np.full(7, 3.0)
        row[6] = 0.0
        base = losses(row[None])[0] - (4.0**-3 * [0.1, 3.0, 0.5, 1.0, 10.0, 0.05, 0][i])
        row[i] = b
        table[i, b] = max(losses(row[None])[0] - base, 1e-9)
    known = LogAdditive(Data(codes, losses(codes)), options, table)
    blind = LogAdditive(Data(codes, losses(codes)), options)

    def error(surrogate: LogAdditive) -> float:
        return float(np.abs(np.log(surrogate.mean(new) / losses(new))).mean())

    assert error(known) < 0.2 * error(blind)


def test_drawn_tables_spread_around_the_truth() -> None:
    codes = sampled(60)
    surrogate = LogAdditive(Data(codes, losses(codes)), Options(SPACE))
    tables = surrogate.tables(16, np.random.default_rng(0))
    assert tables.shape == (16, 7, 4)
    assert np.isinf(tables[:, 6, 2:]).all()
    steps = tables[:, 4, 0] - tables[:, 4, 1]
    assert np.median(steps) == pytest.approx(7.5, rel=0.1)


def test_measured_errors_are_believed() -> None:
    codes = sampled(40)
    rng = np.random.default_rng(0)
    noisy = losses(codes) * (1 + 0.2 * rng.standard_normal(40))
    surrogate = LogAdditive(Data(codes, noisy, (0.2 * losses(codes)) ** 2), Options(SPACE))
    kept = np.abs(surrogate.mean(codes) / losses(codes) - 1).mean()
    assert kept < 0.75 * np.abs(noisy / losses(codes) - 1).mean()


def test_more_data_needs_no_new_fit() -> None:
    codes = sampled(50)
    data = Data(codes, losses(codes))
    fewer = LogAdditive(Data(codes[:30], losses(codes[:30])), Options(SPACE))
    more, new = fewer.conditioned(data), sampled(30, 1)
    assert more.posterior(new)[1].trace() < fewer.posterior(new)[1].trace()
    np.testing.assert_allclose(more.mean(codes), losses(codes), rtol=0.05)


def test_what_adds_up_is_recognised() -> None:
    codes = sampled(40)
    assert isinstance(fit(Data(codes, losses(codes)), SPACE), LogAdditive)
    assert isinstance(fit(Data(codes, -codes.sum(axis=1)), SPACE), LinearAdditive)
