"""The plain layout: codes in the file's row-wise packed bytes, read by the reference."""

from __future__ import annotations

from torch import Tensor

from moopt_kernels.layout import Parts
from moopt_kernels.packing import pack, unpack


def arrange(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Parts:
    """Codes [n, k], scales and zeros [n, ceil(k / group_size)] as this layout holds them."""
    return pack(codes, bits), scales.contiguous(), None if zeros is None else zeros.contiguous()


def restore(parts: Parts, bits: int, group_size: int, shape: tuple[int, int]) -> Parts:
    """What was arranged, exactly."""
    codes, scales, zeros = parts
    return unpack(codes, bits, shape[1]), scales, zeros
