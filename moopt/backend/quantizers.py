"""Group-wise quantizers: a matrix in, unsigned codes with scales and zero points out. No calibration data here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moopt.errors import QuantizationError

WIDTHS = (2, 3, 4, 5, 6, 8)
VERSION = 1
"""To be raised when a quantizer gives other codes: what is stored of the old ones is then made again."""


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix, n x k: value = scale * (code - zero).

    Attributes:
        codes: n x k, uint8, each below 2**bits.
        scales: n x k/group, bfloat16.
        zeros: n x k/group, uint8; None for the symmetric middle 2**(bits - 1).
        bits: The width.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix the codes stand for, n x k."""
        n, groups = self.scales.shape
        zeros = 2.0 ** (self.bits - 1) if self.zeros is None else self.zeros.float()[..., None]
        values = (self.codes.view(n, groups, -1).float() - zeros) * self.scales.float()[..., None]
        return values.view(n, -1).to(dtype)


def rtn(weight: Tensor, bits: int, group_size: int) -> Quantized:
    """Round to nearest, asymmetric: the range of each group, zero included, onto the codes."""
    grouped = _grouped(weight, group_size)
    scale, zero = _range(grouped, bits)
    return _rounded(grouped, scale, zero, bits)


def rtn_symmetric(weight: Tensor, bits: int, group_size: int) -> Quantized:
    """Round to nearest, symmetric: zero in the middle of the codes, no zero points stored."""
    grouped = _grouped(weight, group_size)
    scale = (grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(1e-8).bfloat16()
    middle = torch.full_like(scale, 2.0 ** (bits - 1), dtype=torch.float32)
    found = _rounded(grouped, scale, middle, bits)
    return Quantized(found.codes, found.scales, None, bits)


SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a group's range that half-quadratic quantization tries."""


def hqq(weight: Tensor, bits: int, group_size: int, steps: int = 4, p: float = 0.7) -> Quantized:
    """Half-quadratic quantization (Badri & Shaji 2023): refits the zero points under an l_p loss, p < 1, without data.

    Each step shrinks the error by the generalised soft threshold and solves for the zero point. The published method
    keeps the range and stores fractional zero points; ours are whole codes, where that alone moves little, so shares
    of the range are tried too and each group takes what loses least.
    """
    grouped = _grouped(weight, group_size)
    scale, best = _range(grouped, bits)
    lowest = _loss(grouped, scale.float(), best, bits, p)
    for share in SHRINKS:
        tried, zero = _range(grouped * share, bits)
        wide, beta = tried.float(), 10.0
        for _ in range(steps):
            rounded = zero.round().clamp(0, 255)
            loss = _loss(grouped, wide, rounded, bits, p)
            better = loss < lowest
            lowest, best = torch.where(better, loss, lowest), torch.where(better, rounded, best)
            scale = torch.where(better, tried, scale)
            codes = (grouped / wide + zero).round().clamp(0, 2**bits - 1)
            error = grouped - wide * (codes - zero)
            shrunk = error.sign() * (error.abs() - error.abs().clamp_min(1e-8).pow(p - 1) / beta).clamp_min(0)
            zero = (codes - (grouped - shrunk) / wide).mean(-1, keepdim=True)
            beta *= 1.01
    return _rounded(grouped, scale, best, bits)


def _loss(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int, p: float) -> Tensor:
    """The l_p error of each group, [n, groups, 1]."""
    codes = (grouped / scale + zero).round().clamp(0, 2**bits - 1)
    return (grouped - scale * (codes - zero)).abs().pow(p).sum(-1, keepdim=True)


QUANTIZERS: dict[str, Callable[[Tensor, int, int], Quantized]] = {
    "rtn": rtn,
    "rtn-symmetric": rtn_symmetric,
    "hqq": hqq,
}


def named(name: str) -> Callable[[Tensor, int, int], Quantized]:
    """The quantizer of that name.

    Raises:
        QuantizationError: there is none; lists what there is.
    """
    if name not in QUANTIZERS:
        raise QuantizationError(f"There is no quantizer {name!r}; expected one of {', '.join(QUANTIZERS)}.")
    return QUANTIZERS[name]


def check(name: str, shape: tuple[int, int], bits: tuple[int, ...], group_size: int) -> None:
    """Refuse what a layer cannot have.

    Raises:
        QuantizationError: names the layer, its size and what would fit.
    """
    if wrong := [b for b in bits if b not in WIDTHS]:
        raise QuantizationError(f"Got the width {wrong[0]!r}; expected widths among {', '.join(map(str, WIDTHS))}.")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 8:
        raise QuantizationError(f"Got the group size {group_size!r}; expected a whole number of at least 8.")
    if shape[1] % group_size:
        fitting = [g for g in (32, 64, 128, 256) if shape[1] % g == 0] or [shape[1]]
        raise QuantizationError(
            f"The group size {group_size} does not divide the {shape[1]} inputs of {name}; "
            f"{', '.join(map(str, fitting))} would, or skip the layer."
        )


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    rows, columns = weight.shape
    if columns % group_size:
        raise QuantizationError(f"The group size {group_size} does not divide the {columns} inputs.")
    return weight.float().view(rows, columns // group_size, group_size)


def _range(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (bfloat16) and zero point (whole, float32) of each group, [n, groups, 1]."""
    low = grouped.amin(-1, keepdim=True).clamp_max(0)
    high = grouped.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8).bfloat16()
    return scale, (-low / scale.float()).round().clamp(0, 2**bits - 1)


def _rounded(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Quantized:
    codes = (grouped / scale.float()).round_().add_(zero).clamp_(0, 2**bits - 1).to(torch.uint8)
    rows = grouped.shape[0]
    return Quantized(codes.view(rows, -1), scale.view(rows, -1), zero.to(torch.uint8).view(rows, -1), bits)
