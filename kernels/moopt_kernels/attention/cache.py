"""A layer's keys and values: the older tokens packed at 2, 4 or 8 bits, the newest ones in full precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.packing import pack, unpack

WIDTHS = (2, 4, 8, 16)
HALF = torch.finfo(torch.float16).max


@dataclass
class Store:
    """Packed tokens: value = code * scale + low.

    Attributes:
        codes: B x H x C x (D * bits / 8), uint8, each token's codes packed as by `pack`; C is room, not what is used.
            At 16 bits the values themselves, B x H x C x D.
        scales: Float16, B x H x (C / group) x D where `group` tokens of a channel share one, B x H x C x 1 where each
            token has its own.
        lows: Like the scales: the smallest value of each group.
        bits: 2, 4, 8, or 16 for what is not quantized.
        group: How many tokens share a scale; 0 where each token has its own.
    """

    codes: Tensor
    scales: Tensor
    lows: Tensor
    bits: int
    group: int

    @property
    def nbytes(self) -> int:
        """What it takes in memory, room that is not used yet included."""
        packed = 0 if self.bits == 16 else self.scales.nbytes + self.lows.nbytes
        return self.codes.nbytes + packed


@dataclass
class KVCache:
    """Keys and values of one layer, B sequences, H heads of D: first `packed` tokens in stores, then the window.

    Attributes:
        keys: Packed per channel (KIVI: groups of tokens) or per token.
        values: Packed per token.
        key_window: B x H x W x D, the newest tokens as they came.
        value_window: Like the keys'.
        packed: How many tokens the stores hold.
        residual_length: How many of the newest tokens are never packed.
        layout: Which implementation reads it; the bytes are the same for all.
    """

    keys: Store
    values: Store
    key_window: Tensor
    value_window: Tensor
    packed: int
    residual_length: int
    layout: dispatch.Layout

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.packed + self.key_window.shape[2]

    @property
    def nbytes(self) -> int:
        """What it takes in memory, room that is not used yet included."""
        return self.keys.nbytes + self.values.nbytes + self.key_window.nbytes + self.value_window.nbytes


def kv_cache(like: Tensor, k_bits: int, v_bits: int, group_size: int | None = 32, residual_length: int = 32) -> KVCache:
    """An empty cache.

    Args:
        like: B x H x anything x D: gives sizes, type and device.
        k_bits: Width of keys: 2, 4, 8 or 16.
        v_bits: Width of values.
        group_size: How many tokens of a key's channel share a scale, a power of two; None: each token has one scale.
        residual_length: How many of the newest tokens stay in full precision.

    Raises:
        ValueError: a width, size or type is none that can be packed.
        KernelError: MOOPT_KERNELS asks for what cannot run here.
    """
    if k_bits not in WIDTHS or v_bits not in WIDTHS:
        raise ValueError(f"Got keys of {k_bits} and values of {v_bits} bits; expected 2, 4, 8 or 16.")
    if group_size is not None and (group_size < 1 or group_size & (group_size - 1)):
        raise ValueError(f"Got groups of {group_size} tokens; expected a power of two, or None.")
    if like.ndim != 4 or like.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            f"Got {like.dtype} of shape {list(like.shape)}; expected bfloat16, float16 or float32, [B, H, n, D]."
        )
    if not like.shape[1] or like.shape[-1] < 1 or like.shape[-1] % 8 or residual_length < 0:
        raise ValueError(
            f"Got {like.shape[1]} heads of {like.shape[-1]} and a residual window of {residual_length}; expected at "
            "least 1 head of a multiple of 8, and a window of at least 0."
        )
    window = like[:, :, :0].contiguous()
    keys, values = _store(like, k_bits, group_size or 0), _store(like, v_bits, 0)
    return KVCache(keys, values, window, window, 0, residual_length, dispatch.choose_layout(like.device))


def kv_append(cache: KVCache, keys: Tensor, values: Tensor) -> None:
    """Add tokens, keys and values B x H x n x D; the oldest of the window are packed, whole groups of them at a time.

    What was packed is never packed again. A token is packed once, after `residual_length` newer ones have come.
    What float16 cannot reach is packed as the nearest that its scale and smallest value can; what is no number is kept.

    Raises:
        ValueError: shapes or types are not those of the cache.
    """
    window = cache.key_window
    for tokens in (keys, values):
        fits = tokens.ndim == 4 and tokens.shape[:2] == window.shape[:2] and tokens.shape[3] == window.shape[3]
        if not fits or keys.shape != values.shape or tokens.dtype != window.dtype:
            raise ValueError(
                f"Got keys {list(keys.shape)} of {keys.dtype} and values {list(values.shape)} of {values.dtype}; "
                f"expected both [B, H, n, D] for a cache of {list(window.shape)} of {window.dtype}."
            )
    key_window = torch.cat([cache.key_window, keys], 2)
    value_window = torch.cat([cache.value_window, values], 2)
    whole = cache.keys.group or 1
    old = max(0, key_window.shape[2] - cache.residual_length) // whole * whole
    if old:
        write = _write_cpu if cache.layout == "cpu" else _write
        for store, window in ((cache.keys, key_window), (cache.values, value_window)):
            if store.codes.shape[2] < cache.packed + old:
                make_room(store, max(cache.packed + old, store.codes.shape[2] * 9 // 8))
            if store.bits == 16:
                store.codes[:, :, cache.packed : cache.packed + old] = window[:, :, :old]
            else:
                write(store, window[:, :, :old], cache.packed)
        cache.packed += old
        key_window, value_window = key_window[:, :, old:].contiguous(), value_window[:, :, old:].contiguous()
    cache.key_window, cache.value_window = key_window, value_window


def read(store: Store, count: int) -> Tensor:
    """The first `count` tokens of a store, B x H x count x D, in float32."""
    codes = store.codes[:, :, :count]
    if store.bits == 16:
        return codes.float()
    batch, heads, _, columns = codes.shape
    size = columns * 8 // store.bits
    wide = unpack(codes.reshape(-1, columns), store.bits, size).view(batch, heads, count, size).float()
    if store.group == 0:
        return wide * store.scales[:, :, :count].float() + store.lows[:, :, :count].float()
    group = torch.arange(count, device=codes.device) // store.group
    return wide * store.scales.float()[:, :, group] + store.lows.float()[:, :, group]


def _store(like: Tensor, bits: int, group: int) -> Store:
    batch, heads, _, size = like.shape
    if bits == 16:
        codes = like.new_empty(batch, heads, 0, size)
    else:
        codes = like.new_empty(batch, heads, 0, size * bits // 8, dtype=torch.uint8)
    scales = like.new_empty(batch, heads, 0, size if group else 1, dtype=torch.float16)
    return Store(codes, scales, scales, bits, group)


def _write(store: Store, tokens: Tensor, at: int) -> None:
    """Pack tokens, whole groups of them, behind the first `at`."""
    batch, heads, count, size = tokens.shape
    step = store.group or 1
    grouped = tokens.float().view(batch, heads, count // step, step, size)
    axis = 3 if store.group else 4
    low, high = grouped.amin(axis, keepdim=True), grouped.amax(axis, keepdim=True)
    low = low.clamp(-HALF, HALF).half().float()
    scale = ((high - low).clamp_min(1e-5) / (2**store.bits - 1)).clamp_max(HALF).half()
    codes = ((grouped - low) / scale.float()).round().clamp(0, 2**store.bits - 1).to(torch.uint8)
    packed = pack(codes.view(-1, size), store.bits).view(batch, heads, count, -1)
    store.codes[:, :, at : at + count] = packed
    first, last = at // step, (at + count) // step
    store.scales[:, :, first:last] = scale.flatten(2).view(batch, heads, last - first, -1)
    store.lows[:, :, first:last] = low.half().flatten(2).view(batch, heads, last - first, -1)


def _write_cpu(store: Store, tokens: Tensor, at: int) -> None:
    """What `_write` does, bit by bit, in C++."""
    torch.ops.moopt.cpu_kv_append(tokens, store.codes, store.scales, store.lows, at, store.bits, store.group)


def make_room(store: Store, count: int) -> None:
    """Have room for `count` tokens, whole groups of them, and no more."""
    step = store.group or 1
    room = -(-count // step) * step
    store.codes = _resized(store.codes, room)
    if store.bits < 16:
        store.scales, store.lows = _resized(store.scales, room // step), _resized(store.lows, room // step)


def _resized(tensor: Tensor, room: int) -> Tensor:
    found = tensor.new_zeros(*tensor.shape[:2], room, tensor.shape[3])
    kept = min(room, tensor.shape[2])
    found[:, :, :kept] = tensor[:, :, :kept]
    return found
