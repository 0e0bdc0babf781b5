"""Groups of inputs that share a scale: the range of each group onto whole codes, and rounding to them."""

from __future__ import annotations

import torch
from torch import Tensor

from moopt.backend.quantizers.contract import Quantized
from moopt.errors import QuantizationError


def split(weight: Tensor, group_size: int) -> Tensor:
    """A matrix n x k by its groups, [n, groups, group size], in float32."""
    rows, columns = weight.shape
    if columns % group_size:
        raise QuantizationError(f"The group size {group_size} does not divide the {columns} inputs.")
    return weight.float().reshape(rows, columns // group_size, group_size)


def ranges(grouped: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (bfloat16) and zero point (whole, float32) of each group, [n, groups, 1]."""
    low = grouped.amin(-1, keepdim=True).clamp_max(0)
    high = grouped.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8).bfloat16()
    return scale, (-low / scale.float()).round().clamp(0, 2**bits - 1)


def rounded(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Quantized:
    """Groups rounded to the nearest codes of their scales and zero points, [n, groups, 1]."""
    codes = (grouped / scale.float()).round_().add_(zero).clamp_(0, 2**bits - 1).to(torch.uint8)
    rows = grouped.shape[0]
    return Quantized(codes.view(rows, -1), scale.view(rows, -1), zero.to(torch.uint8).view(rows, -1), bits)
