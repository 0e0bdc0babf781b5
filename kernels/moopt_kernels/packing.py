"""Codes of 2 to 8 bits <-> bytes: contiguous along a row, least significant bit first. The plain reference."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_columns(columns: int, bits: int) -> int:
    """How many bytes a row of `columns` codes takes: whole bytes, the last one padded with zeros."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, k], uint8 below 2**bits, as bytes [n, ceil(k * bits / 8)].

    Raises:
        ValueError: the width is not 1 to 8, or a code does not fit it.
    """
    _check(bits)
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"Got codes of {codes.dtype} and shape {tuple(codes.shape)}; expected uint8, [n, k].")
    if bits == 8:
        return codes.clone()
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"Got the code {int(codes.max())}; expected codes below {2**bits} at {bits} bits.")
    n, k = codes.shape
    stream = (codes[..., None] >> torch.arange(bits, device=codes.device)).bitwise_and_(1).view(n, k * bits)
    padded = torch.nn.functional.pad(stream, (0, packed_columns(k, bits) * 8 - k * bits))
    places = (1 << torch.arange(8, device=codes.device)).to(torch.uint8)
    return (padded.view(n, packed_columns(k, bits), 8) * places).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes [n, columns], uint8, that `pack` packed.

    Raises:
        ValueError: the bytes are not those of a row of so many codes.
    """
    _check(bits)
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != packed_columns(columns, bits):
        raise ValueError(
            f"Got {packed.dtype} of shape {tuple(packed.shape)}; expected uint8, [n, {packed_columns(columns, bits)}], "
            f"for {columns} codes of {bits} bits."
        )
    n = len(packed)
    stream = (packed[..., None] >> torch.arange(8, device=packed.device)).bitwise_and_(1).view(n, packed.shape[1] * 8)
    places = (1 << torch.arange(bits, device=packed.device)).to(torch.uint8)
    return (stream[:, : columns * bits].view(n, columns, bits) * places).sum(-1, dtype=torch.uint8)


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"Got the width {bits}; expected 1 to 8.")
