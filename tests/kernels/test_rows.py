"""Rows of a prepacked matrix: views compute what the whole does, single rows are those of the matrix, layouts agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moopt_kernels import (
    dequantize,
    dequantize_rows,
    dispatch,
    quantized_linear,
    rearrange,
    slice_repack,
    split_rows,
    unprepack,
)


@given(
    st.integers(1, 8), st.integers(1, 50), st.integers(1, 90), st.sampled_from([7, 32, 64]), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_rearranging_keeps_every_bit(
    layout: dispatch.Layout, draw: Any, bits: int, n: int, k: int, group: int, symmetric: bool, seed: int
) -> None:
    matrix = draw(n, k, bits, group, symmetric, seed)
    there = rearrange(matrix.prepack("plain"), "cpu", layout)
    assert there.layout == layout
    for found, exact in zip(unprepack(there), (matrix.codes, matrix.scales, matrix.zeros), strict=True):
        assert found is exact is None or torch.equal(found, exact)
    back = rearrange(there, "cpu", "plain")
    assert torch.equal(back.codes, matrix.prepack("plain").codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_chosen_rows_are_those_of_the_matrix(layout: dispatch.Layout, draw: Any, bits: int, symmetric: bool) -> None:
    weight = draw(70, 96, bits, 32, symmetric).prepack(layout)
    rows = torch.tensor([[3, 69, 0], [3, 17, 64]])
    assert torch.equal(dequantize_rows(weight, rows), dequantize(weight)[rows])
    assert dequantize_rows(weight, rows[:0], torch.bfloat16).shape == (0, 3, 96)
    if bits == 8:
        assert torch.equal(dequantize_rows(weight, rows, bits=3), dequantize(slice_repack(weight, 3))[rows])


def test_views_of_rows_share_memory_and_compute_the_same(layout: dispatch.Layout, draw: Any) -> None:
    weight, x = draw(90, 64, 5, 32).prepack(layout), torch.randn(3, 64)
    views = split_rows(weight, [32, 48, 10])
    assert views is not None
    assert torch.equal(torch.cat([quantized_linear(x, v) for v in views], -1), quantized_linear(x, weight))
    assert all(v.codes.untyped_storage().data_ptr() == weight.codes.untyped_storage().data_ptr() for v in views)
    assert layout == "plain" or split_rows(weight, [40, 50]) is None
    with pytest.raises(ValueError, match="expected 90 rows in all"):
        split_rows(weight, [32, 32])
