"""Codes of 1 to 8 bits <-> bytes: contiguous along a row, least significant bit first. The plain reference."""

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
    check_codes(codes, bits)
    n, k = codes.shape
    eights = torch.nn.functional.pad(codes, (0, -k % 8)).view(n, -(-k // 8), 8).long()
    words = (eights << _places(bits, codes.device)).sum(-1, keepdim=True)  # eight codes fill `bits` bytes
    whole = words.view(torch.uint8)[..., :bits].reshape(n, -(-k // 8) * bits)
    return whole[:, : packed_columns(k, bits)].contiguous()


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
    n, size = packed.shape
    whole = torch.nn.functional.pad(packed, (0, -size % bits)).view(n, -(-size // bits), bits)
    words = torch.nn.functional.pad(whole, (0, 8 - bits)).view(torch.int64)
    eights: Tensor = (words >> _places(bits, packed.device)) & (2**bits - 1)
    return eights.to(torch.uint8).view(n, eights.shape[1] * 8)[:, :columns].contiguous()


def check_codes(codes: Tensor, bits: int) -> None:
    """Refuse codes that do not fit their width; a graph that is being compiled has none to look at.

    Raises:
        ValueError: one does not fit.
    """
    if bits < 8 and codes.numel() and not torch.compiler.is_compiling() and int(codes.max()) >= 2**bits:
        raise ValueError(f"Got the code {int(codes.max())}; expected codes below {2**bits} at {bits} bits.")


def _places(bits: int, device: torch.device) -> Tensor:
    """Where each of eight codes begins in a word."""
    return torch.arange(8, device=device) * bits


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"Got the width {bits}; expected 1 to 8.")
