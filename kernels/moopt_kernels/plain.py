"""The plain layout: codes in the file's row-wise packed bytes, read by the reference."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from moopt_kernels.layout import Parts, Prepacked
from moopt_kernels.packing import pack, unpack


def arrange(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Parts:
    """Codes [n, k], scales and zeros [n, ceil(k / group_size)] as this layout holds them."""
    return pack(codes, bits), scales.contiguous(), None if zeros is None else zeros.contiguous()


def restore(parts: Parts, bits: int, group_size: int, shape: tuple[int, int]) -> Parts:
    """What was arranged, exactly."""
    codes, scales, zeros = parts
    return unpack(codes, bits, shape[1]), scales, zeros


def view_rows(weight: Prepacked, start: int, stop: int) -> Prepacked:
    """Consecutive rows, in the same memory."""
    zeros = None if weight.zeros is None else weight.zeros[start:stop]
    shape = (stop - start, weight.shape[1])
    return replace(weight, codes=weight.codes[start:stop], scales=weight.scales[start:stop], zeros=zeros, shape=shape)


def take_rows(weight: Prepacked, rows: Tensor) -> Prepacked:
    """A matrix of these rows [m]; IndexError where there is no such row."""
    codes, scales = weight.codes.index_select(0, rows), weight.scales.index_select(0, rows)
    zeros = None if weight.zeros is None else weight.zeros.index_select(0, rows)
    return replace(weight, codes=codes, scales=scales, zeros=zeros, shape=(len(rows), weight.shape[1]))
