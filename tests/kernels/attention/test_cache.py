"""A packed cache holds what was appended, to its widths, whatever the steps it came in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moopt_kernels import kv_append, kv_cache
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


def test_what_cannot_be_packed_is_refused() -> None:
    keys, values = tokens(3)
    with pytest.raises(ValueError, match="keys of 3 and values of 4 bits; expected 2, 4, 8 or 16"):
        kv_cache(keys, 3, 4)
    with pytest.raises(ValueError, match="groups of 24 tokens; expected a power of two"):
        kv_cache(keys, 4, 4, group_size=24)
    with pytest.raises(ValueError, match="heads of 12"):
        kv_cache(keys[..., :12], 4, 4)
    with pytest.raises(ValueError, match=r"expected both \[B, H, n, D\]"):
        kv_append(kv_cache(keys, 4, 4), keys, values[:, :, :1])
