"""Paired comparisons: what shared difficulty hides from separate means, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moopt.errors import StudyError
from moopt.paired import FEWEST, difference, surely_below

numbers = st.floats(-1e3, 1e3)


def test_what_sequences_share_cancels() -> None:
    rng = np.random.default_rng(0)
    hard = rng.lognormal(0, 1, 12)
    better, worse = hard + rng.normal(0, 0.01, 12), hard + 0.1 + rng.normal(0, 0.01, 12)
    found = difference(better, worse)
    assert found.mean == pytest.approx(-0.1, abs=0.01)
    assert found.error < 0.01 < 0.2 < hard.std() / 12**0.5
    assert surely_below(better, worse)
    assert not surely_below(worse, better)


@given(st.lists(st.tuples(numbers, numbers), min_size=FEWEST, max_size=20), st.sampled_from([0.9, 0.99, 0.999]))
def test_it_is_the_paired_t_test(pairs: list[tuple[float, float]], confidence: float) -> None:
    first, second = np.array(pairs).T
    found = difference(first, second)
    if found.error < 1e-9 * (1 + abs(found.mean)):
        return
    chance = stats.ttest_rel(first, second, alternative="less").pvalue
    if abs(chance - (1 - confidence)) > 1e-9:
        assert surely_below(first, second, confidence) == (chance < 1 - confidence)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20))
def test_two_candidates_are_never_both_below_each_other(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    assert not (surely_below(first, second) and surely_below(second, first))
    assert difference(first, second).mean == -difference(second, first).mean


def test_equal_differences_leave_no_doubt_and_equal_samples_all_of_it() -> None:
    assert surely_below([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0])
    assert difference([1.0, 1.0], [3.0, 3.0]) == difference([0.0, 0.0], [2.0, 2.0])
    assert not surely_below([1.0] * 5, [1.0] * 5)


def test_with_few_sequences_nothing_is_sure() -> None:
    assert not surely_below([0.0] * (FEWEST - 1), [1.0] * (FEWEST - 1))
    assert surely_below([0.0] * FEWEST, [1.0] * FEWEST)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([1.0], [2.0], "Got samples of length 1; expected at least 2"),
        ([], [], "Got samples of length 0; expected at least 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "Got 2 and 3 samples; expected as many of both, on the same sequences"),
        ([[1.0, 2.0]], [[1.0, 2.0]], r"shape \(1, 2\)"),
        ([1.0, float("nan")], [1.0, 2.0], "not finite"),
        (["a", "b"], [1.0, 2.0], "expected a flat list of numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(first: list, second: list, says: str) -> None:
    for compare in (difference, surely_below):
        with pytest.raises(StudyError, match=says):
            compare(first, second)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 99.0, float("nan")])
def test_a_confidence_is_between_a_half_and_one(confidence: float) -> None:
    with pytest.raises(StudyError, match=r"expected a number above 0\.5 and below 1"):
        surely_below([1.0, 2.0], [1.0, 2.0], confidence)
