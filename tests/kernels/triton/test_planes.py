"""The triton layout gives back exactly what was put in, and a slice of it finds its bits in the first planes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moopt_kernels import dequantize, dequantize_rows, quantized_linear, split_rows, unprepack
from moopt_kernels.gpu import planes


@given(
    n=st.integers(1, 9), k=st.integers(1, 150), bits=st.integers(1, 8), group=st.integers(1, 200),
    symmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_round_trip_is_exact(draw: Any, n: int, k: int, bits: int, group: int, symmetric: bool, seed: int) -> None:
    matrix = draw(n, k, bits, group, symmetric, seed)
    codes, scales, zeros = unprepack(matrix.prepack("triton"))
    assert torch.equal(codes, matrix.codes)
    assert torch.equal(scales, matrix.scales)
    assert zeros is None if symmetric else torch.equal(zeros, matrix.zeros)


@pytest.mark.parametrize("bits", range(1, 9))
def test_groups_of_32_take_no_more_than_their_bits(draw: Any, bits: int) -> None:
    assert draw(3, 96, bits, 32).prepack("triton").codes.numel() == 3 * 96 * bits // 8


@pytest.mark.parametrize(("bits", "read"), [(2, 4), (3, 4), (4, 5), (5, 6), (6, 8), (7, 8), (8, 8)])
def test_a_slice_needs_only_its_planes(bits: int, read: int) -> None:
    tiles = pytest.importorskip("moopt_kernels.gpu.tiles")
    assert 4 + tiles.low_bits(8, bits) == read
    assert read in [sum(planes.PLANES[8][: i + 1]) for i in range(4)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_chosen_rows_are_those_of_the_matrix(device: str, draw: Any, bits: int) -> None:
    weight, rows = draw(37, 50, bits, 24).prepack("triton", device), torch.tensor([[3, 36], [0, 3]], device=device)
    assert torch.equal(dequantize_rows(weight, rows), dequantize(weight)[rows])


def test_only_the_rows_that_are_asked_for_are_dequantized(device: str, draw: Any) -> None:
    weight = draw(37, 50, 3, 24).prepack("triton", device)
    taken = planes.take_rows(weight, torch.tensor([5, 30], device=device))
    assert taken.shape == (2, 50)
    assert taken.nbytes * 37 == weight.nbytes * 2


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_views_of_rows_share_memory_and_compute_the_same(device: str, draw: Any, bits: int) -> None:
    weight, x = draw(30, 64, bits, 32).prepack("triton", device), torch.randn(3, 64, device=device)
    views = split_rows(weight, [7, 13, 10])
    assert views is not None
    torch.testing.assert_close(torch.cat([quantized_linear(x, v) for v in views], -1), quantized_linear(x, weight))
    assert all(v.codes.untyped_storage().data_ptr() == weight.codes.untyped_storage().data_ptr() for v in views)


def test_rows_in_several_planes_are_not_viewed(draw: Any) -> None:
    assert split_rows(draw(30, 64, 3, 32).prepack("triton"), [10, 20]) is None
