"""Half-quadratic quantization: the better default without calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer
from moopt.backend.quantizers.groups import ranges, rounded, split

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a group's range that half-quadratic quantization tries."""


@dataclass(frozen=True)
class HQQ(Quantizer):
    """Half-quadratic quantization (Badri & Shaji 2023): refits the zero points under an l_p loss, p < 1, without data.

    Each step shrinks the error by the generalised soft threshold and solves for the zero point. The published method
    keeps the range and stores fractional zero points; ours are whole codes, where that alone moves little, so shares
    of the range are tried too and each group takes what loses least.

    Args:
        steps: Refits of each share.
        p: Of the loss.
    """

    name: ClassVar[str] = "hqq"

    steps: int = 4
    p: float = 0.7

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        grouped = split(weight, group_size)
        scale, best = ranges(grouped, bits)
        lowest = _loss(grouped, scale.float(), best, bits, self.p)
        for share in SHRINKS:
            tried, zero = ranges(grouped * share, bits)
            wide, beta = tried.float(), 10.0
            for _ in range(self.steps):
                whole = zero.round().clamp(0, 255)
                loss = _loss(grouped, wide, whole, bits, self.p)
                better = loss < lowest
                lowest, best = torch.where(better, loss, lowest), torch.where(better, whole, best)
                scale = torch.where(better, tried, scale)
                codes = (grouped / wide + zero).round().clamp(0, 2**bits - 1)
                error = grouped - wide * (codes - zero)
                shrunk = error.sign() * (error.abs() - error.abs().clamp_min(1e-8).pow(self.p - 1) / beta).clamp_min(0)
                zero = (codes - (grouped - shrunk) / wide).mean(-1, keepdim=True)
                beta *= 1.01
        return rounded(grouped, scale, best, bits)


def _loss(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int, p: float) -> Tensor:
    """The l_p error of each group, [n, groups, 1]."""
    codes = (grouped / scale + zero).round().clamp(0, 2**bits - 1)
    return (grouped - scale * (codes - zero)).abs().pow(p).sum(-1, keepdim=True)
