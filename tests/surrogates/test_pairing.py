"""Pairing: what sequences do to all candidates is no error of one."""

from __future__ import annotations

import numpy as np

from moopt.surrogates import paired

RNG = np.random.default_rng(0)


def losses(own: float) -> np.ndarray:
    """Losses [60, 16] of candidates on sequences of very different difficulty."""
    levels, sequences = RNG.normal(0, 1.5, (60, 1)), RNG.normal(0, 0.5, (1, 16))
    return np.exp(levels + sequences + own * RNG.standard_normal((60, 16)))


def test_only_what_differs_between_candidates_is_an_error() -> None:
    table = losses(own=0.1)
    values = table.mean(axis=1)
    alone = table.var(axis=1, ddof=1) / 16
    found = np.sqrt(paired(values, alone, table.tolist())) / values
    assert np.allclose(found, 0.1 / np.sqrt(16), rtol=0.1)
    assert (found < 0.4 * np.sqrt(alone) / values).all()


def test_values_of_any_sign_are_paired_by_differences() -> None:
    table = RNG.normal(0, 5, (60, 1)) + RNG.normal(0, 3, (1, 16)) + 0.5 * RNG.standard_normal((60, 16))
    found = paired(table.mean(axis=1), np.full(60, 9.0), table.tolist())
    assert np.allclose(np.sqrt(found), 0.5 / 4, rtol=0.1)


def test_without_samples_of_all_candidates_the_variances_stay() -> None:
    table = losses(own=0.1).tolist()
    values, alone = np.ones(60), np.full(60, np.nan)
    for samples in ([*table[:-1], None], [*table[:-1], table[-1][:-1]], [None] * 60, [[1.0]] * 60):
        assert paired(values, alone, samples) is alone
    assert paired(values[:5], alone[:5], table[:5]) is not None
    assert np.isnan(paired(values[:5], alone[:5], table[:5])).all()
