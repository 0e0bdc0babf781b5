"""A matrix survives prepacking exactly, in every layout, width and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moopt_kernels import dispatch, prepack, unprepack

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 150))


@given(
    st.integers(1, 8), SHAPES, st.sampled_from([1, 7, 32, 64, 128, 1000]), st.booleans(), st.integers(0, 2**31)
)  # fmt: skip
def test_unprepack_is_the_exact_inverse(
    layout: dispatch.Layout, draw: Any, bits: int, shape: tuple[int, int], group: int, symmetric: bool, seed: int
) -> None:
    matrix = draw(*shape, bits, group, symmetric, seed)
    weight = matrix.prepack(layout)
    codes, scales, zeros = unprepack(weight)
    assert torch.equal(codes, matrix.codes)
    assert torch.equal(scales, matrix.scales)
    assert zeros is None if symmetric else torch.equal(zeros, matrix.zeros)
    assert weight.shape == shape


def test_what_does_not_fit_is_refused_by_name() -> None:
    codes, scales = torch.zeros(4, 70, dtype=torch.uint8), torch.ones(4, 2).bfloat16()
    with pytest.raises(ValueError, match=r"scales .* shape \(4, 2\); expected bfloat16, \[4, 3\]"):
        prepack(codes, scales, None, 4, 32, "plain")
    with pytest.raises(ValueError, match="width 9; expected 1 to 8"):
        prepack(codes, scales, None, 9, 64, "plain")
    with pytest.raises(ValueError, match=r"codes of torch\.int32"):
        prepack(codes.int(), scales, None, 4, 64, "plain")
    with pytest.raises(ValueError, match=r"zeros of torch\.float32"):
        prepack(codes, scales, torch.zeros(4, 2), 4, 64, "plain")
