"""A packed cache holds what was appended, to its widths, whatever the steps it came in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moopt_kernels import (
    KernelError,
    KVCache,
    choose_layout,
    kv_append,
    kv_cache,
    kv_crop,
    kv_dequantize,
    kv_move,
    kv_reserve,
    kv_select,
)
from moopt_kernels.attention.cache import read


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the same for every implementation, and this one needs no compiler."""
    monkeypatch.setenv("MOOPT_KERNELS", "reference")


def tokens(count: int, seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, 2, 3, count, size, generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[1]


@given(
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=5), k_bits=st.sampled_from([2, 4, 8, 16]),
    group=st.sampled_from([None, 8, 32]), residual=st.sampled_from([0, 5, 32]),
)  # fmt: skip
def test_steps_do_not_matter(steps: list[int], k_bits: int, group: int | None, residual: int) -> None:
    keys, values = tokens(sum(steps))
    whole, grown = (kv_cache(keys, k_bits, 4, group, residual) for _ in range(2))
    kv_append(whole, keys, values)
    for k, v in zip(keys.split(steps, 2), values.split(steps, 2), strict=True):
        kv_append(grown, k, v)
    assert (grown.packed, grown.length) == (whole.packed, whole.length)
    assert torch.equal(grown.key_window, whole.key_window)
    for mine, other in ((grown.keys, whole.keys), (grown.values, whole.values)):
        assert torch.equal(read(mine, grown.packed), read(other, whole.packed))


@pytest.mark.parametrize(("bits", "error"), [(2, 0.45), (4, 0.09), (8, 0.005), (16, 0.0)])
@pytest.mark.parametrize("group", [None, 32], ids=["per-token", "per-channel"])
def test_what_is_read_is_within_the_width(bits: int, error: float, group: int | None) -> None:
    keys, values = tokens(64)
    cache = kv_cache(keys, bits, bits, group, residual_length=0)
    kv_append(cache, keys, values)
    for store, exact in ((cache.keys, keys), (cache.values, values)):
        assert float((read(store, 64) - exact).norm() / exact.norm()) <= error


def test_the_newest_tokens_stay_as_they_came() -> None:
    keys, values = tokens(100)
    cache = kv_cache(keys, 4, 4, group_size=32, residual_length=32)
    kv_append(cache, keys, values)
    assert (cache.packed, cache.length) == (64, 100)
    assert torch.equal(cache.key_window, keys[:, :, 64:])
    assert torch.equal(cache.value_window, values[:, :, 64:])


def test_a_constant_channel_keeps_its_value() -> None:
    keys = torch.full((1, 1, 32, 16), 5.0)
    cache = kv_cache(keys, 2, 2, residual_length=0)
    kv_append(cache, keys, keys)
    assert torch.equal(read(cache.keys, 32), keys)


def packed_by(
    monkeypatch: pytest.MonkeyPatch, keys: Tensor, values: Tensor, bits: int, group: int | None
) -> list[KVCache]:
    """What the reference and the CPU's kernels make of the same tokens, in two steps."""
    caches = []
    for name in ("reference", "cpu"):
        monkeypatch.setenv("MOOPT_KERNELS", name)
        try:
            cache = kv_cache(keys, bits, bits, group, residual_length=5)
        except KernelError as error:
            pytest.skip(str(error))
        for k, v in zip(keys.split(35, 2), values.split(35, 2), strict=True):
            kv_append(cache, k, v)
        caches.append(cache)
    return caches


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 8, 32], ids=["per-token", "g8", "g32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_the_fast_append_writes_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, bits: int, group: int | None, dtype: torch.dtype
) -> None:
    keys, values = (part.to(dtype) for part in tokens(70, size=24))
    caches = packed_by(monkeypatch, keys, values, bits, group)
    for mine, other in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        assert torch.equal(mine.codes, other.codes)
        assert torch.equal(mine.scales, other.scales)
        assert torch.equal(mine.lows, other.lows)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [None, 8], ids=["per-token", "g8"])
@pytest.mark.parametrize("outlier", [-1e5, 3e5, -1e30, 1e30])
def test_what_float16_cannot_reach_stays_finite(
    monkeypatch: pytest.MonkeyPatch, bits: int, group: int | None, outlier: float
) -> None:
    keys, values = tokens(70)
    keys[0, 1, 3, 5] = outlier
    caches = packed_by(monkeypatch, keys, values, bits, group)
    found = [read(cache.keys, cache.packed) for cache in caches]
    assert torch.equal(found[0], found[1])
    assert found[0].isfinite().all()
    assert found[0][0, 1, 3, 5].abs() >= 65504


@pytest.mark.parametrize("group", [None, 8], ids=["per-token", "g8"])
def test_what_is_no_number_is_seen(monkeypatch: pytest.MonkeyPatch, group: int | None) -> None:
    keys, values = tokens(70)
    keys[0, 1, 3, 5] = values[1, 0, 4, 0] = torch.nan
    for cache in packed_by(monkeypatch, keys, values, 4, group):
        lost = read(cache.keys, cache.packed).isnan()
        assert lost[0, 1, :8, 5].all() if group else lost[0, 1, 3].all()
        assert int(lost.sum()) == (8 if group else 16)
        assert read(cache.values, cache.packed).isnan().nonzero()[:, :3].unique(dim=0).tolist() == [[1, 0, 4]]


def test_what_cannot_be_packed_is_refused() -> None:
    keys, values = tokens(3)
    with pytest.raises(ValueError, match="keys of 3 and values of 4 bits; expected 2, 4, 8 or 16"):
        kv_cache(keys, 3, 4)
    with pytest.raises(ValueError, match="groups of 24 tokens; expected a power of two"):
        kv_cache(keys, 4, 4, group_size=24)
    with pytest.raises(ValueError, match="Got 0 heads of"):
        kv_cache(keys[:, :0], 4, 4)
    with pytest.raises(ValueError, match="heads of 12"):
        kv_cache(keys[..., :12], 4, 4)
    with pytest.raises(ValueError, match=r"expected both \[B, H, n, D\]"):
        kv_append(kv_cache(keys, 4, 4), keys, values[:, :, :1])


def held(keys: Tensor, values: Tensor, **how: Any) -> KVCache:
    cache = kv_cache(keys, **({"k_bits": 4, "v_bits": 2} | how))
    kv_append(cache, keys, values)
    return cache


def same(mine: KVCache, other: KVCache) -> bool:
    pairs = zip(kv_dequantize(mine), kv_dequantize(other), strict=True)
    return mine.packed == other.packed and all(torch.equal(a, b) for a, b in pairs)


@given(
    count=st.integers(1, 100), left=st.integers(0, 100), more=st.integers(1, 60),
    group=st.sampled_from([None, 8, 32]), residual=st.sampled_from([0, 5, 32]),
)  # fmt: skip
def test_a_cropped_cache_holds_the_first_tokens_and_goes_on(
    count: int, left: int, more: int, group: int | None, residual: int
) -> None:
    left = min(left, count)
    keys, values = tokens(count + more)
    cache = held(keys[:, :, :count], values[:, :, :count], group_size=group, residual_length=residual)
    before = kv_dequantize(cache)
    kv_crop(cache, left)
    for found, whole in zip(kv_dequantize(cache), before, strict=True):
        assert torch.equal(found, whole[:, :, :left])
    kept = cache.packed
    kv_append(cache, keys[:, :, count:], values[:, :, count:])
    assert cache.length == left + more
    assert cache.key_window.shape[2] < residual + (group or 1)
    newest = min(more, cache.key_window.shape[2])
    assert torch.equal(cache.key_window[:, :, -newest:], keys[:, :, count + more - newest :]) or not newest
    assert all(
        torch.equal(found[:, :, :kept], whole[:, :, :kept])
        for found, whole in zip(kv_dequantize(cache), before, strict=True)
    )


def test_cropping_what_was_not_packed_leaves_no_trace() -> None:
    keys, values = tokens(100)
    cache, plain = held(keys, values), held(keys[:, :, :70], values[:, :, :70])
    kv_crop(cache, 70)
    kv_append(cache, keys[:, :, 70:], values[:, :, 70:])
    kv_append(plain, keys[:, :, 70:], values[:, :, 70:])
    assert same(cache, plain)


def test_sequences_are_selected_repeated_and_reordered() -> None:
    keys, values = tokens(70)
    cache, picked = held(keys, values), torch.tensor([1, 1, 0])
    kv_select(cache, picked)
    assert same(cache, held(keys[picked], values[picked]))
    kv_append(cache, keys[picked][:, :, :40], values[picked][:, :, :40])
    assert cache.length == 110


def test_room_is_what_was_reserved_and_appending_moves_nothing() -> None:
    keys, values = tokens(100)
    cache = kv_cache(keys, 4, 2, 32, 32)
    kv_reserve(cache, 100)
    codes = cache.keys.codes.data_ptr()
    for k, v in zip(keys.split(7, 2), values.split(7, 2), strict=True):
        kv_append(cache, k, v)
    assert same(cache, held(keys, values))
    assert cache.keys.codes.data_ptr() == codes
    # 64 tokens packed at 4 + 2 bits, with a scale and a smallest value a channel and 32 tokens, and a token; 36 as came
    each = 64 * 16 * 6 // 8 + 2 * 16 * 4 + 64 * 4 + 2 * 36 * 16 * 4
    assert cache.nbytes == 2 * 3 * each
    with pytest.raises(ValueError, match="Got room for 99 tokens; the cache holds 100"):
        kv_reserve(cache, 99)


def test_a_moved_cache_is_read_by_the_kernels_there(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values = tokens(70)
    cache = held(keys, values)
    monkeypatch.delenv("MOOPT_KERNELS")
    kv_move(cache, torch.device("cpu"))
    assert cache.layout == choose_layout("cpu")
    assert same(cache, held(keys, values))


def test_what_cannot_be_cropped_is_refused() -> None:
    cache = held(*tokens(9))
    for length in (-1, 10):
        with pytest.raises(ValueError, match=f"Got {length} tokens to keep; the cache holds 9"):
            kv_crop(cache, length)
