"""Candidates of the same cost as measured ones."""

import numpy as np
import pytest

from moopt.acquisition import Matches
from moopt_problems.synthetic import BitToy


@pytest.fixture
def toy():
    return BitToy(8)


def costs(problem, rows):
    table = np.asarray(problem.costs())
    options = np.rint(rows - problem.space.lower).astype(int)
    return table[np.arange(table.shape[0]), options].sum(axis=1)


def drawn(problem, n=4):
    """Tables [n, objectives, decisions, options] that fall with the bits."""
    shape = (n, len(problem.objectives), *np.asarray(problem.costs()).shape)
    return -np.cumsum(np.random.default_rng(1).random(shape), axis=3)


def test_a_match_costs_what_the_nearest_costs_or_the_next_less(toy):
    rng = np.random.default_rng(0)
    rows, like = (np.array([toy.space.encode(toy.space.sample(rng)) for _ in range(n)]) for n in (12, 3))
    found, paid = costs(toy, Matches(toy).of(drawn(toy)[0], rows, like)), costs(toy, like)
    nearest = paid[np.abs(paid - costs(toy, rows)[:, None]).argmin(axis=1)]
    assert (found <= nearest).all()
    assert (found >= 0.85 * nearest).all()


def test_a_match_keeps_most_of_a_candidate(toy):
    rng = np.random.default_rng(0)
    rows, like = (np.array([toy.space.encode(toy.space.sample(rng)) for _ in range(n)]) for n in (12, 12))
    changed = (Matches(toy).of(drawn(toy)[0], rows, like) != rows).sum(axis=1)
    assert np.median(changed) <= 3
