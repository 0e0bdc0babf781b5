"""Attention over a packed cache gives what attention over its dequantized tokens gives, in every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from moopt_kernels import KVCache, calls, dispatch, kv_append, kv_cache, quantized_kv_attention
from moopt_kernels.attention.cache import read

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
UTILS = ("test_schema", "test_autograd_registration", "test_faketensor")
"""The other checks compile, with so many tensors for long; the test compiles too."""


@pytest.fixture(params=["reference", "triton", "cpu", "cpu-avx2"])
def ran(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An implementation; on CPUs with all that this machine can, and with no more than AVX2."""
    name, _, most = request.param.partition("-")
    monkeypatch.setenv("MOOPT_KERNELS", name)
    try:
        home = dispatch.home(dispatch.choose_layout("cpu"))
    except dispatch.KernelError as error:
        pytest.skip(str(error))
    if most:
        home.limit(most)
    yield name
    if most:
        home.limit("")


def filled(count: int, dtype: torch.dtype = torch.float32, size: int = 16, **how: Any) -> KVCache:
    """Two sequences of two heads."""
    keys, values = torch.randn(2, 2, 2, count, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    cache = kv_cache(keys, **({"k_bits": 4, "v_bits": 4} | how))
    kv_append(cache, keys, values)
    return cache


def queries(count: int, dtype: torch.dtype = torch.float32, size: int = 16) -> Tensor:
    """Six heads, so three share one of the cache's."""
    return torch.randn(2, 6, count, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def exact(q: Tensor, cache: KVCache, mask: Tensor | None) -> Tensor:
    """PyTorch's attention in float64 over what the cache holds."""
    k = torch.cat([read(cache.keys, cache.packed), cache.key_window.float()], 2).double()
    v = torch.cat([read(cache.values, cache.packed), cache.value_window.float()], 2).double()
    if mask is None:
        mask = torch.ones(q.shape[2], cache.length, dtype=torch.bool).tril(cache.length - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q.double(), k, v, mask, enable_gqa=True)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [16, 64], ids=lambda d: f"D{d}")
@pytest.mark.parametrize(("k_bits", "v_bits"), [(2, 16), (4, 2), (8, 4), (16, 8), (4, 4)])
def test_every_width(ran: str, k_bits: int, v_bits: int, size: int) -> None:
    cache, q = filled(69, size=size, k_bits=k_bits, v_bits=v_bits), queries(1, size=size)
    assert error(quantized_kv_attention(q, cache), exact(q, cache, None)) < 1e-6
    assert calls()["quantized_kv_attention", ran] == 1


@pytest.mark.parametrize("how", [
    {"group_size": None, "residual_length": 0}, {"group_size": None, "residual_length": 7},
    {"group_size": 8, "residual_length": 0}, {"group_size": 128, "residual_length": 3},
], ids=["per-token-r0", "per-token-r7", "g8-r0", "g128-r3"])  # fmt: skip
@pytest.mark.parametrize("count", [5, 150], ids=lambda n: f"T{n}")
def test_every_arrangement_of_keys(ran: str, how: dict[str, Any], count: int) -> None:
    cache, q = filled(count, **how), queries(1)
    assert error(quantized_kv_attention(q, cache), exact(q, cache, None)) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("size", [16, 24], ids=lambda d: f"D{d}")
def test_a_chunk_of_a_prefill_sees_what_came_before(ran: str, dtype: torch.dtype, size: int) -> None:
    cache, q = filled(70, dtype, size), queries(7, dtype, size)
    found = quantized_kv_attention(q, cache)
    assert found.dtype == dtype
    assert error(found, exact(q, cache, None)) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("how", [{}, {"group_size": None, "k_bits": 8, "v_bits": 2}, {"k_bits": 16, "group_size": 8}],
                         ids=["per-channel", "per-token", "keys-16"])  # fmt: skip
def test_a_long_chunk_sees_what_came_before(ran: str, dtype: torch.dtype, how: dict[str, Any]) -> None:
    cache, q = filled(70, dtype, 24, **how), queries(13, dtype, 24)
    mask = torch.ones(2, 1, 13, 70, dtype=torch.bool).tril(57)
    mask[1, :, :, :9] = mask[0, :, 4] = False
    assert error(quantized_kv_attention(q, cache), exact(q, cache, None)) < TOLERANCES[dtype]
    found, expected = quantized_kv_attention(q, cache, mask), exact(q, cache, mask)
    values = torch.cat([read(cache.values, cache.packed), cache.value_window.float()], 2)[0].mean(1)
    expected[0, :, 4] = values.repeat_interleave(3, 0)
    assert error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("size", [16, 24], ids=lambda d: f"D{d}")
def test_a_whole_prefill_sees_what_came_before(ran: str, size: int) -> None:
    cache, q = filled(40, size=size), queries(40, size=size)
    assert error(quantized_kv_attention(q, cache), exact(q, cache, None)) < 1e-6


def test_left_padding_is_not_looked_at(ran: str) -> None:
    cache, q = filled(70), queries(3)
    mask = torch.ones(2, 1, 3, 70, dtype=torch.bool).tril(67)
    mask[0, :, :, :40] = False
    assert error(quantized_kv_attention(q, cache, mask), exact(q, cache, mask)) < 1e-6


def test_a_row_that_may_look_nowhere_gets_the_mean(ran: str) -> None:
    cache, q = filled(70), queries(2)
    mask = torch.ones(2, 1, 2, 70, dtype=torch.bool)
    mask[1, :, 0] = False
    found = quantized_kv_attention(q, cache, mask)
    values = torch.cat([read(cache.values, cache.packed), cache.value_window], 2)[1].mean(1)
    torch.testing.assert_close(found[1, :, 0], values.repeat_interleave(3, 0))
    assert found.isfinite().all()


def test_the_scale_can_be_given(ran: str) -> None:
    cache, q = filled(40), queries(1)
    torch.testing.assert_close(quantized_kv_attention(q, cache, scale=0.5), quantized_kv_attention(q * 2, cache))


def test_the_operator_passes_opcheck_and_compiles_whole(ran: str) -> None:
    cache, q = filled(70), queries(2)
    assert cache.packed == 32
    k, v, layout = cache.keys, cache.values, dispatch.OVERRIDES[ran]
    quantized_kv_attention(q, cache)
    parts = (q, k.codes, k.scales, k.lows, v.codes, v.scales, v.lows, cache.key_window, cache.value_window, None)
    torch.library.opcheck(
        getattr(torch.ops.moopt, f"kv_attention_{layout}").default, (*parts, 0.25, 32, 4, 4, 32), test_utils=UTILS
    )
    compiled = torch.compile(quantized_kv_attention, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(q, cache), quantized_kv_attention(q, cache))


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", "reference")
    cache = filled(10)
    with pytest.raises(ValueError, match=r"queries \[2, 5, 1, 16\]"):
        quantized_kv_attention(torch.ones(2, 5, 1, 16), cache)
    with pytest.raises(ValueError, match=r"expected bool, \[2, 1, 3, 10\]"):
        quantized_kv_attention(queries(3), cache, torch.ones(2, 1, 3, 9, dtype=torch.bool))
