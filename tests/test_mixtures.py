"""MC-MoE's programme against every allocation there is."""

import itertools

import numpy as np
import pytest

from moopt.errors import BudgetError
from moopt.mixtures import expert_losses, expert_widths

EVERY = np.array(list(itertools.product((0, 1, 2), repeat=8)))
"""The columns of all 3^8 allocations of 8 experts, [6561, 8]."""


def measured(seed):
    """Activations and weights [8], and errors [8, 3] that fall along the widths."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 1000, 8), rng.gamma(1.0, 50.0, 8), np.sort(rng.lognormal(0, 1, (8, 3)), axis=1)[:, ::-1]


@pytest.mark.parametrize("widths", [(1, 2, 3), (2, 3, 4), (8, 2, 4)])
@pytest.mark.parametrize("seed", range(8))
def test_the_widths_are_the_best_of_all(widths, seed):
    losses, bits = expert_losses(*measured(seed)), np.array(widths)
    lost, of = losses[np.arange(8), EVERY].sum(1), bits[EVERY]
    second, first = sorted(widths)[-2:]
    allowed = (of == first).any(1) & (of == second).any(1)
    for budget in range(int(of[allowed].sum(1).min()), int(of.sum(1).max()) + 1, 2):
        found = expert_widths(losses, budget, widths)
        assert found.sum() <= budget
        assert (found == first).any()
        assert (found == second).any()
        own = losses[np.arange(8), [widths.index(b) for b in found]].sum()
        assert own == pytest.approx(lost[allowed & (of.sum(1) <= budget)].min(), rel=1e-6)


def test_one_expert_each_gets_the_two_largest_widths_even_if_it_loses():
    losses = np.tile([[0.0, 1.0, 1.0]], (8, 1))
    assert sorted(expert_widths(losses, 24)) == [1] * 6 + [2, 3]
    losses = np.tile([[9.0, 5.0, 0.0]], (8, 1))
    assert sorted(expert_widths(losses, 24)) == [2] + [3] * 7


def test_errors_are_raised_to_gamma_not_alpha():
    activations, weights, errors = measured(0)
    share, routed = activations / activations.sum(), weights / weights.sum()
    expected = [[share[i] * routed[i] ** 1.5 * errors[i, j] ** 2 for j in range(3)] for i in range(8)]
    np.testing.assert_allclose(expert_losses(activations, weights, errors), expected)
    found = expert_losses(activations, weights, errors, alpha=0.5, beta=2, gamma=3)
    np.testing.assert_allclose(found, share[:, None] ** 0.5 * routed[:, None] ** 2 * errors**3)


def test_gamma_decides_who_gets_the_bits():
    """The third bit saves the first expert 1 of 10 and the second 2 of 2: squared, the first one's 1 weighs more."""
    use, errors = np.ones(2), np.array([[10.0, 9.0], [2.0, 0.0]])
    assert expert_widths(expert_losses(use, use, errors), 5, (2, 3)).tolist() == [3, 2]
    assert expert_widths(expert_losses(use, use, errors, gamma=1), 5, (2, 3)).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("losses", "budget", "widths", "message"),
    [
        (np.ones((8, 3)), 10, (1, 2, 3), "budget of 10 bits for 8 experts; expected 11 or more: one at 3, one at 2"),
        (np.ones((8, 2)), 20, (1, 2, 3), "shape"),
        (np.ones((1, 3)), 20, (1, 2, 3), "two or more"),
        (np.ones((8, 2)), 20, (3, 3), "every width once"),
    ],
)
def test_what_cannot_be_allocated_is_refused(losses, budget, widths, message):
    with pytest.raises(BudgetError, match=message):
        expert_widths(losses, budget, widths)


@pytest.mark.parametrize(
    ("activations", "weights", "errors", "message"),
    [
        ([1, 2], [1], [[1.0], [2.0]], "Got activations of shape"),
        ([1, -2], [1, 1], [[1.0], [2.0]], "activations have numbers"),
        ([1, 2], [1, 1], [[1.0], [float("nan")]], "errors have numbers"),
    ],
)
def test_measurements_that_make_no_sense_are_refused(activations, weights, errors, message):
    with pytest.raises(BudgetError, match=message):
        expert_losses(activations, weights, errors)
