"""What is no matrix, no row, no cache and no gradient is refused by name; nothing is computed from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moopt_kernels import (
    KernelError,
    Prepacked,
    dequantize,
    dequantize_rows,
    dispatch,
    kv_append,
    kv_cache,
    prepack,
    quantize_weight,
    quantized_kv_attention,
    quantized_linear,
    slice_repack,
    sliced_linear,
    split_rows,
    unprepack,
)


@pytest.mark.parametrize("shape", [(4, 0), (0, 4)], ids=["k0", "n0"])
def test_an_empty_matrix(registered: dispatch.Layout, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        quantize_weight(torch.empty(shape), 4, 64, layout=registered)
    scales = torch.empty(shape[0], 0 if shape[1] == 0 else 1).bfloat16()
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        prepack(torch.empty(shape, dtype=torch.uint8), scales, None, 4, 64, registered)


def test_codes_that_do_not_fit_the_width(registered: dispatch.Layout) -> None:
    with pytest.raises(ValueError, match="Got the code 17; expected codes below 16 at 4 bits"):
        prepack(torch.full((4, 32), 17, dtype=torch.uint8), torch.ones(4, 1).bfloat16(), None, 4, 32, registered)


@pytest.mark.parametrize("row", [25, 20, -1, -100])
def test_a_row_that_is_not_there(registered: dispatch.Layout, draw: Any, row: int) -> None:
    weight = draw(20, 32, 4, 32).prepack(registered)
    with pytest.raises(IndexError):
        dequantize_rows(weight, torch.tensor([3, row]))


@pytest.mark.parametrize("row", [1.5, True])
def test_rows_that_are_no_whole_numbers(registered: dispatch.Layout, draw: Any, row: float) -> None:
    with pytest.raises(ValueError, match="expected whole numbers"):
        dequantize_rows(draw(20, 32, 4, 32).prepack(registered), torch.tensor([row]))


@pytest.mark.parametrize("shift", [-1, 3, 9])
def test_a_shift_that_is_no_slices(registered: dispatch.Layout, shift: int) -> None:
    with pytest.raises(ValueError, match=f"Got the shift {shift}; expected 0, or 4 for a slice of 4 bits"):
        prepack(torch.ones(4, 32).byte(), torch.ones(4, 1).bfloat16(), None, 4, 32, registered, shift)


def test_views_of_no_rows(registered: dispatch.Layout, draw: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes \[0, 32\]; expected 32 rows in all, 1 or more in each"):
        split_rows(draw(32, 32, 4, 32).prepack(registered), [0, 32])


def test_sizes_that_the_codes_have_not() -> None:
    dispatch.home("cpu")
    short = Prepacked(torch.zeros(3, dtype=torch.uint8), torch.ones(1).bfloat16(), None, 8, 64, (40000, 6400), "cpu")
    for use in (unprepack, dequantize, lambda w: slice_repack(w, 4), lambda w: dequantize_rows(w, torch.tensor([5]))):
        with pytest.raises(ValueError, match="Got 3 codes; expected 256000000 bytes") as raised:
            use(short)
        assert ".cpp" not in str(raised.value)


def test_zeros_of_another_type(draw: Any) -> None:
    dispatch.home("cpu")
    weight = draw(20, 32, 4, 32).prepack("cpu")
    with pytest.raises(ValueError, match="zeros unlike the scales; expected bytes"):
        dequantize(replace(weight, zeros=weight.zeros.float()))


@pytest.mark.parametrize("m", [1, 40], ids=lambda m: f"M{m}")
def test_a_bias_that_does_not_fit(registered: dispatch.Layout, draw: Any, m: int) -> None:
    weight = draw(20, 32, 8, 32).prepack(registered)
    for bias in (torch.ones(1), torch.ones(20, 1), torch.ones(20).long()):
        with pytest.raises(ValueError, match=r"expected floating point, \[20\]"):
            quantized_linear(torch.ones(m, 32), weight, bias)
        with pytest.raises(ValueError, match=r"expected floating point, \[20\]"):
            sliced_linear(torch.ones(m, 32), weight, 3, bias)


def test_a_number_for_activations(registered: dispatch.Layout, draw: Any) -> None:
    with pytest.raises(ValueError, match=r"x of shape \[\]; expected \[..., 32\]"):
        quantized_linear(torch.tensor(1.0), draw(20, 32, 4, 32).prepack(registered))


def test_triton_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelError, match="'triton' cannot run on cpu: Triton runs on an NVIDIA GPU"):
        quantize_weight(torch.ones(4, 32), 4, 32, layout="triton")
    with pytest.raises(KernelError, match="'triton' cannot run on cpu: Triton runs on an NVIDIA GPU"):
        prepack(torch.ones(4, 32, dtype=torch.uint8), torch.ones(4, 1).bfloat16(), None, 4, 32, "triton")


@pytest.mark.parametrize("shape", [(1, 2, 3, 0), (2, 3, 16)], ids=["D0", "3-d"])
def test_a_cache_of_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        kv_cache(torch.ones(shape), 4, 4)


def test_tokens_unlike_the_cache() -> None:
    cache = kv_cache(torch.ones(1, 2, 0, 16).bfloat16(), 4, 4)
    for tokens in (torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 24).bfloat16(), torch.ones(2, 3, 16).bfloat16()):
        with pytest.raises(ValueError, match=r"for a cache of \[1, 2, 0, 16\] of torch.bfloat16"):
            kv_append(cache, tokens, tokens)
    assert cache.length == 0
    assert cache.key_window.dtype == torch.bfloat16


def test_queries_without_a_batch() -> None:
    with pytest.raises(ValueError, match=r"shape \[2, 1, 16\]; expected .* \[B, Hq, Q, D\]"):
        quantized_kv_attention(torch.ones(2, 1, 16), kv_cache(torch.ones(1, 2, 0, 16), 4, 4))


def test_tensors_of_several_devices(registered: dispatch.Layout, draw: Any) -> None:
    weight, nowhere = draw(20, 32, 8, 32).prepack(registered), torch.ones(20, device="meta")
    x, cache = torch.ones(3, 32), kv_cache(torch.ones(1, 2, 0, 16), 4, 4)
    kv_append(cache, torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16))
    hidden = torch.ones(1, 1, 1, 3, dtype=torch.bool, device="meta")
    for use in (
        lambda: quantized_linear(x, weight, nowhere),
        lambda: sliced_linear(x.to("meta"), weight, 3),
        lambda: quantized_kv_attention(torch.ones(1, 2, 1, 16), cache, hidden),
    ):
        with pytest.raises(ValueError, match=r"Got tensors on .*meta.*; expected all of them on one device"):
            use()


def gradients(weight: Prepacked) -> list[Tensor]:
    x, bias = torch.ones(2, 32, requires_grad=True), torch.ones(20, requires_grad=True)
    cache = kv_cache(torch.ones(1, 2, 0, 16), 4, 4)
    kv_append(cache, torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16))
    return [
        quantized_linear(x, weight),
        quantized_linear(x.detach(), weight, bias),
        sliced_linear(x, weight, 3),
        quantized_kv_attention(torch.ones(1, 2, 1, 16, requires_grad=True), cache),
    ]


def test_a_gradient(registered: dispatch.Layout, draw: Any) -> None:
    weight = draw(20, 32, 8, 32).prepack(registered)
    for y in gradients(weight):
        assert y.requires_grad
        with pytest.raises(KernelError, match="for inference only and have no gradients"):
            y.sum().backward()
    with torch.no_grad():
        assert not any(y.requires_grad for y in gradients(weight))
