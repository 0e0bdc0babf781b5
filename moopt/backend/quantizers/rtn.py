"""Round to nearest, group-wise: no calibration data, nothing to set. The baseline of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer
from moopt.backend.quantizers.groups import ranges, rounded, split


@dataclass(frozen=True)
class RTN(Quantizer):
    """Round to nearest, asymmetric: the range of each group, zero included, onto the codes."""

    name: ClassVar[str] = "rtn"

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        return rtn(weight, bits, group_size)


@dataclass(frozen=True)
class RTNSymmetric(Quantizer):
    """Round to nearest, symmetric: zero in the middle of the codes, no zero points stored."""

    name: ClassVar[str] = "rtn-symmetric"
    symmetric: ClassVar[bool] = True

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        return rtn_symmetric(weight, bits, group_size)


def rtn(weight: Tensor, bits: int, group_size: int) -> Quantized:
    """Round to nearest, asymmetric: the range of each group, zero included, onto the codes."""
    grouped = split(weight, group_size)
    scale, zero = ranges(grouped, bits)
    return rounded(grouped, scale, zero, bits)


def rtn_symmetric(weight: Tensor, bits: int, group_size: int) -> Quantized:
    """Round to nearest, symmetric: zero in the middle of the codes, no zero points stored."""
    grouped = split(weight, group_size)
    scale = (grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(1e-8).bfloat16()
    middle = torch.full_like(scale, 2.0 ** (bits - 1), dtype=torch.float32)
    found = rounded(grouped, scale, middle, bits)
    return Quantized(found.codes, found.scales, None, bits)
