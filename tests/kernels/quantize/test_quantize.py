"""Weights to codes and back: the backend's numbers, MatGPTQ's slices, every layout alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moopt.backend.quantizers import rtn, rtn_symmetric
from moopt_kernels import dequantize, dispatch, quantize_weight, slice_repack, unprepack


def weights(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.02 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))).to(dtype)


@given(
    bits=st.integers(2, 8), group=st.sampled_from([8, 32, 64, 96]), groups=st.integers(1, 3), n=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_quantizing_gives_the_backends_numbers(
    layout: dispatch.Layout, bits: int, group: int, groups: int, n: int, dtype: torch.dtype, seed: int
) -> None:
    weight = weights(n, group * groups, seed, dtype)
    for symmetric, expected in ((False, rtn(weight, bits, group)), (True, rtn_symmetric(weight, bits, group))):
        codes, scales, zeros = unprepack(quantize_weight(weight, bits, group, symmetric, layout))
        assert torch.equal(codes, expected.codes)
        assert torch.equal(scales, expected.scales)
        if expected.zeros is None:
            assert zeros is None
        else:
            assert torch.equal(zeros, expected.zeros)


def test_a_short_last_group_has_a_scale_of_its_own(layout: dispatch.Layout) -> None:
    weight = weights(5, 70)
    codes, scales, zeros = unprepack(quantize_weight(weight, 4, 32, layout=layout))
    last = rtn(weight[:, 64:], 4, 6)
    assert torch.equal(codes[:, 64:], last.codes)
    assert torch.equal(scales[:, 2:], last.scales)
    assert torch.equal(zeros[:, 2:], last.zeros)


def test_zero_and_constant_groups_are_exact(layout: dispatch.Layout) -> None:
    weight = torch.zeros(4, 64)
    weight[1:, 32:] = 0.5
    assert torch.equal(dequantize(quantize_weight(weight, 4, 32, layout=layout))[:, :32], weight[:, :32])
    assert torch.allclose(dequantize(quantize_weight(weight, 4, 32, layout=layout)), weight, rtol=4e-3)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_repacked_slice_is_bit_exact(layout: dispatch.Layout, draw: Any, bits: int, symmetric: bool) -> None:
    parent = draw(37, 150, 8, 64, symmetric)
    parent.codes[0, :] = 255  # rounds up to what must be clamped
    sliced = slice_repack(parent.prepack(layout), bits)
    expected = (parent.codes.double() / 2 ** (8 - bits) + 0.5).floor().clamp_max(2**bits - 1)
    assert torch.equal(unprepack(sliced)[0].double(), expected)
    assert sliced.shift == 8 - bits
    assert torch.allclose(dequantize(sliced).double(), parent.values(bits), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(16, 64), (37, 150)], ids=["N16-K64", "N37-K150"])
def test_dequantizing_is_as_exact_as_its_type(
    layout: dispatch.Layout, draw: Any, shape: tuple[int, int], bits: int, dtype: torch.dtype, tolerance: float
) -> None:
    matrix = draw(*shape, bits, 64)
    found = dequantize(matrix.prepack(layout), dtype)
    assert found.dtype == dtype
    assert found.shape == shape
    assert (found.double() - matrix.values()).norm() <= tolerance * matrix.values().norm()


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4\.0 bits in groups of 32; expected whole numbers"):
        quantize_weight(torch.ones(2, 4), 4.0, 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 bits in groups of 32; expected whole numbers, 2 to 8"):
        quantize_weight(weights(4, 64), 1, 32)
    with pytest.raises(ValueError, match=r"shape \[64\]; expected floating point, \[n, k\]"):
        quantize_weight(torch.ones(64), 4, 32)
    with pytest.raises(ValueError, match="slice of 9 bits"):
        slice_repack(quantize_weight(weights(4, 64), 8, 32, layout="plain"), 9)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_what_is_no_number_is_seen(layout: dispatch.Layout, symmetric: bool) -> None:
    weight = weights(20, 96)
    weight[3, 40] = torch.nan
    found = dequantize(quantize_weight(weight, 4, 32, symmetric, layout))
    assert found[3, 32:64].isnan().all()
    found[3, 32:64] = 0
    assert found.isfinite().all()


def test_a_group_longer_than_a_row_takes_no_room() -> None:
    weight = weights(4, 16)
    found = dequantize(quantize_weight(weight, 4, 2**40, layout="plain"))
    assert torch.equal(found, dequantize(quantize_weight(weight, 4, 16, layout="plain")))
