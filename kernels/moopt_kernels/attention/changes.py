"""What becomes of a packed cache besides more tokens: fewer of them, other sequences, another device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.attention.cache import KVCache, make_room, read


def kv_dequantize(cache: KVCache) -> tuple[Tensor, Tensor]:
    """The keys and the values that a cache stands for, B x H x T x D in the type that they came in."""
    pairs = ((cache.keys, cache.key_window), (cache.values, cache.value_window))
    keys, values = (torch.cat([read(store, cache.packed).to(w.dtype), w], 2) for store, w in pairs)
    return keys, values


def kv_reserve(cache: KVCache, length: int) -> None:
    """Have room for `length` tokens in all and no more, so that appending up to there moves nothing.

    Raises:
        ValueError: the cache holds more.
    """
    if length < cache.length:
        raise ValueError(f"Got room for {length} tokens; the cache holds {cache.length}.")
    step = cache.keys.group or 1
    for store in (cache.keys, cache.values):
        make_room(store, max(0, length - cache.residual_length) // step * step)


def kv_crop(cache: KVCache, length: int) -> None:
    """Keep the first `length` tokens.

    Where that ends inside of a group of keys that are packed together, the tokens of the group that are left move to
    the window, in the values that they were packed to.

    Raises:
        ValueError: the cache holds fewer.
    """
    if not 0 <= length <= cache.length:
        raise ValueError(f"Got {length} tokens to keep; the cache holds {cache.length}.")
    if length >= cache.packed:
        kept = length - cache.packed
        cache.key_window, cache.value_window = cache.key_window[:, :, :kept], cache.value_window[:, :, :kept]
    else:
        step, dtype = cache.keys.group or 1, cache.key_window.dtype
        whole = length // step * step
        opened = (read(store, length)[:, :, whole:].to(dtype) for store in (cache.keys, cache.values))
        cache.key_window, cache.value_window = opened
        cache.packed = whole
    cache.key_window, cache.value_window = cache.key_window.contiguous(), cache.value_window.contiguous()


def kv_select(cache: KVCache, sequences: Tensor) -> None:
    """Have these sequences, [n] numbers of those that are there, in this order; some twice, some not at all."""
    sequences = sequences.to(cache.key_window.device)
    _each(cache, lambda tensor: tensor.index_select(0, sequences))


def kv_move(cache: KVCache, device: torch.device) -> None:
    """Be on another device, read by its kernels.

    Raises:
        KernelError: MOOPT_KERNELS asks for what cannot run there.
    """
    layout = dispatch.choose_layout(device)
    _each(cache, lambda tensor: tensor.to(device))
    cache.layout = layout


def _each(cache: KVCache, change: Callable[[Tensor], Tensor]) -> None:
    """Change every tensor of a cache."""
    for store in (cache.keys, cache.values):
        store.codes, store.scales, store.lows = change(store.codes), change(store.scales), change(store.lows)
    cache.key_window, cache.value_window = change(cache.key_window), change(cache.value_window)
