"""Weights to codes and back in plain PyTorch: the oracle of the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_weight(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest, asymmetric: the range of each group, zero included, onto the codes.

    Args:
        weight: n x k.
        bits: 1 to 8.
        group_size: How many inputs share a scale; the last group of a row may be shorter.

    Returns:
        Codes [n, k] (uint8), scales (bfloat16) and zeros (uint8) [n, ceil(k / group_size)].
    """
    grouped = _grouped(weight, group_size)
    low, high = grouped.amin(-1, keepdim=True).clamp_max(0), grouped.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8).bfloat16()
    zero = (-low / scale.float()).round().clamp(0, 2**bits - 1)
    return _codes(grouped, scale, zero, bits, weight.shape[1]), scale[..., 0], zero[..., 0].to(torch.uint8)


def quantize_weight_symmetric(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Round to nearest, symmetric: zero in the middle of the codes, 2 to 8 bits.

    Returns:
        Codes [n, k] (uint8) and scales (bfloat16) [n, ceil(k / group_size)].
    """
    grouped = _grouped(weight, group_size)
    scale = (grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(1e-8).bfloat16()
    middle = torch.tensor(2.0 ** (bits - 1), device=weight.device)
    return _codes(grouped, scale, middle, bits, weight.shape[1]), scale[..., 0]


def sliced_codes(codes: Tensor, bits: int) -> Tensor:
    """The `bits`-bit slice of 8-bit codes: their top bits, rounded half up and clamped (MatGPTQ)."""
    cut = 8 - bits
    return ((codes.int() + (1 << cut >> 1)) >> cut).clamp_max(2**bits - 1).to(torch.uint8)


def dequantize(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int, shift: int = 0
) -> Tensor:
    """The matrix [n, k] that codes stand for, scale * (code * 2**shift - zero), in float32.

    Args:
        codes: n x k, uint8.
        scales: n x ceil(k / group_size), bfloat16.
        zeros: Like the scales, uint8; None for the middle, 2**(bits + shift - 1).
        bits: Width of a code.
        group_size: How many inputs share a scale.
        shift: How many bits the codes were cut by when they were sliced.
    """
    k = codes.shape[1]
    group_size = min(group_size, k)
    wide = codes.float() * 2.0**shift
    scale = scales.float().repeat_interleave(group_size, 1)[:, :k]
    if zeros is None:
        return scale * (wide - 2.0 ** (bits + shift - 1))
    return scale * (wide - zeros.float().repeat_interleave(group_size, 1)[:, :k])


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    """In float32, [n, groups, group_size], the last group filled up with zeros, which change no range."""
    n, k = weight.shape
    group_size = min(group_size, k)
    groups = -(-k // group_size)
    return torch.nn.functional.pad(weight.float(), (0, groups * group_size - k)).view(n, groups, group_size)


def _codes(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int, k: int) -> Tensor:
    codes = ((grouped / scale.float()).round() + zero).clamp(0, 2**bits - 1).to(torch.uint8)
    return codes.view(len(codes), -1)[:, :k].contiguous()
