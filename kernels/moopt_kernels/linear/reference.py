"""Linear layers on packed codes in plain PyTorch, accumulated in float32: the oracle of the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.packing import unpack
from moopt_kernels.quantize.reference import dequantize, sliced_codes


def quantized_linear(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,
    n: int, bits: int, group_size: int, shift: int,
) -> Tensor:  # fmt: skip
    """Compute y = x W^T + bias for a plainly packed W: x [..., k] -> [..., n] in x's type."""
    dispatch.count("quantized_linear", "reference")
    return product(x, dequantize(unpack(codes, bits, x.shape[-1]), scales, zeros, bits, group_size, shift), bias)


def sliced_linear(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,
    n: int, bits: int, group_size: int,
) -> Tensor:  # fmt: skip
    """The same for the `bits`-bit slice of an 8-bit parent."""
    dispatch.count("sliced_linear", "reference")
    sliced = sliced_codes(unpack(codes, 8, x.shape[-1]), bits)
    return product(x, dequantize(sliced, scales, zeros, bits, group_size, 8 - bits), bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear in float32 whatever x's type is, rounded to it once."""
    wide = None if bias is None else bias.float()
    return torch.nn.functional.linear(x.float(), weight, wide).to(x.dtype)
