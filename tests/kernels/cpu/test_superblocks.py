"""The CPU layout holds every code in its own bits, whatever the width, the group and the tails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moopt_kernels import KernelError, dispatch, prepack, slice_repack, unprepack

ROW = 1000
SHAPES = ((16, 128), (37, 150), (1, 1), (48, 33))


@pytest.fixture(autouse=True)
def cpu() -> None:
    try:
        dispatch.home("cpu")
    except KernelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("group", [32, 64, 128, ROW])
@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_is_undone_exactly(draw: Any, bits: int, group: int) -> None:
    for n, k in SHAPES:
        matrix = draw(n, k, bits, group)
        codes, scales, zeros = unprepack(matrix.prepack("cpu"))
        assert torch.equal(codes, matrix.codes)
        assert torch.equal(scales, matrix.scales)
        assert torch.equal(zeros, matrix.zeros)


@pytest.mark.parametrize("group", [32, 64, 128, ROW])
@pytest.mark.parametrize("bits", range(1, 8))
def test_repacking_a_parent_is_packing_its_slice(draw: Any, bits: int, group: int) -> None:
    for n, k in SHAPES:
        parent = draw(n, k, 8, group)
        codes = ((parent.codes.int() + 2 ** (7 - bits)) >> (8 - bits)).clamp_max(2**bits - 1).to(torch.uint8)
        sliced = prepack(codes, parent.scales, parent.zeros, bits, group, "cpu", 8 - bits)
        assert torch.equal(slice_repack(parent.prepack("cpu"), bits).codes, sliced.codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_whole_superblock_has_no_byte_too_many(draw: Any, bits: int) -> None:
    assert draw(16, 32, bits, 32).prepack("cpu").codes.numel() == 16 * 32 * bits // 8
