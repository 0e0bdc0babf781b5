"""What the C++ operators return, by shape and type alone: with these they go into a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS = 16
"""Outputs of a superblock."""
INPUTS, SLICE, LONG = 32, 64, 128
"""Inputs of a superblock; of a slice of a group that is longer than the last (`geometry` in kernels.h)."""


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _codes(like: Tensor, n: int, k: int, bits: int, group_size: int) -> Tensor:
    group = min(group_size, k)
    piece = SLICE if group > LONG else _up(group, INPUTS)
    before = (k - 1) // group  # groups before a row's last one
    columns = before * _up(group, piece) + _up(k - before * group, piece)
    return like.new_empty(_up(n, ROWS) * columns * bits // 8, dtype=torch.uint8)


def _pack(codes: Tensor, bits: int, group_size: int) -> Tensor:
    return _codes(codes, codes.shape[0], codes.shape[1], bits, group_size)


def _unpack(packed: Tensor, n: int, k: int, bits: int, group_size: int) -> Tensor:
    return packed.new_empty(n, k)


def _unstream(rows: Tensor, k: int, bits: int) -> Tensor:
    return rows.new_empty(rows.shape[0], k)


def _repack(parent: Tensor, n: int, k: int, group_size: int, bits: int) -> Tensor:
    return parent.new_empty(parent.shape[0] // 8 * bits)


def _quantize(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, k = weight.shape
    shape = (_up(n, ROWS) // ROWS, -(-k // group_size), ROWS)
    zeros = (0 if symmetric else shape[0], *shape[1:])
    scales = weight.new_empty(shape, dtype=torch.bfloat16)
    return _codes(weight, n, k, bits, group_size), scales, weight.new_empty(zeros, dtype=torch.uint8)


def _dequantize(
    codes: Tensor, scales: Tensor, zeros: Tensor | None,
    n: int, k: int, bits: int, group_size: int, shift: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return codes.new_empty(n, k, dtype=dtype)


def _dequantize_rows(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, rows: Tensor,
    n: int, k: int, bits: int, group_size: int, shift: int, slice: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return codes.new_empty(rows.shape[0], k, dtype=dtype)


def _kv_append(tokens: Tensor, codes: Tensor, scales: Tensor, lows: Tensor, at: int, bits: int, group: int) -> None: ...


def register() -> None:
    """Tell PyTorch; the operators must be there."""
    fakes: dict[str, Callable[..., Any]] = {
        "pack": _pack, "unpack": _unpack, "unstream": _unstream, "repack": _repack, "quantize": _quantize,
        "dequantize": _dequantize, "dequantize_rows": _dequantize_rows, "kv_append": _kv_append,
    }  # fmt: skip
    for name, fake in fakes.items():
        torch.library.register_fake(f"moopt::cpu_{name}", fake)
