"""The plain layout: codes in the file's row-wise packed bytes, read by the reference."""

from __future__ import annotations

from dataclasses import replace

import torch
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


def take_rows(weight: Prepacked, rows: Tensor) -> tuple[Prepacked, Tensor]:
    """A matrix that has these rows [m], and where in it each of them is."""
    zeros = None if weight.zeros is None else weight.zeros[rows]
    shape = (len(rows), weight.shape[1])
    taken = replace(weight, codes=weight.codes[rows], scales=weight.scales[rows], zeros=zeros, shape=shape)
    return taken, torch.arange(len(rows), device=rows.device)
