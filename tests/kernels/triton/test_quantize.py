"""Triton's quantizer gives the reference's codes, scales and zeros, and a slice is repacked bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moopt_kernels import calls, quantize_weight, slice_repack, unprepack
from moopt_kernels.gpu import planes
from moopt_kernels.quantize import reference


@settings(max_examples=12)
@given(
    n=st.integers(1, 40), k=st.integers(1, 100), bits=st.integers(2, 8), group=st.sampled_from([24, 32, 64, 1000]),
    symmetric=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_weights_get_the_codes_of_the_reference(
    device: str, n: int, k: int, bits: int, group: int, symmetric: bool, dtype: torch.dtype, seed: int
) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected: tuple[Any, ...]
    if symmetric:
        expected = (*reference.quantize_weight_symmetric(weight, bits, group), None)
    else:
        expected = reference.quantize_weight(weight, bits, group)
    found = unprepack(quantize_weight(weight.to(device), bits, group, symmetric, layout="triton"))
    for got, wanted in zip(found, expected, strict=True):
        assert got is wanted is None or torch.equal(got.cpu(), wanted)


def test_groups_of_zeros_stay_zeros(device: str) -> None:
    found = quantize_weight(torch.zeros(3, 64, device=device), 4, 32, layout="triton")
    assert unprepack(found)[0].unique().tolist() == [0]
    assert calls()["quantize_weight", "triton"] == 1


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_slice_is_repacked_exactly(device: str, draw: Any, bits: int) -> None:
    parent = draw(33, 100, 8, 24)
    found = slice_repack(parent.prepack("triton", device), bits)
    sliced = reference.sliced_codes(parent.codes, bits)
    assert torch.equal(found.codes.cpu(), planes.arrange(sliced, parent.scales, parent.zeros, bits, 24)[0])
    assert found.shift == 8 - bits
    assert calls()["slice_repack", "triton"] == 1
