"""Group-wise quantizers: a matrix in, unsigned codes with scales and zero points out. No calibration data here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moopt.errors import QuantizationError

WIDTHS = (2, 3, 4, 5, 6, 8)


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


def hqq(weight: Tensor, bits: int, group_size: int, steps: int = 20, p: float = 0.7) -> Quantized:
    """Half-quadratic quantization (Badri & Shaji 2023): refits the zero points under an l_p loss, p < 1, without data.

    Each step shrinks the error by the generalised soft threshold and solves for the zero point; it stops when the
    mean absolute error no longer falls. Zero points are rounded to whole codes.
    """
    grouped = _grouped(weight, group_size)
    scale, zero = _range(grouped, bits)
    wide, beta, best = scale.float(), 10.0, float("inf")
    chosen = zero
    for _ in range(steps):
        codes = (grouped / wide + zero).round().clamp(0, 2**bits - 1)
        error = grouped - wide * (codes - zero)
        loss = float(error.abs().mean())
        if loss >= best:
            break
        best, chosen = loss, zero
        shrunk = error.sign() * (error.abs() - error.abs().clamp_min(1e-8).pow(p - 1) / beta).clamp_min(0)
        zero = (codes - (grouped - shrunk) / wide).mean(-1, keepdim=True)
        beta *= 1.01
    rounded = chosen.round().clamp(0, 255)
    return _rounded(grouped, scale, rounded, bits)


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
