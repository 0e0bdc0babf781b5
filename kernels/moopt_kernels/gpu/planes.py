"""The triton layout: codes cut into planes of 1, 2 or 4 bits, most significant first. Plain PyTorch; no kernels here.

A width is a sum of powers of two (3 = 2 + 1, 7 = 4 + 2 + 1), and each addend is a plane of its own: a matrix [n, kp] of
so many bits a code, packed along a row. Eight codes of a plane of w bits are one element of w bytes, which is what a
kernel loads. kp is k with every group filled up to a multiple of 32 codes, so that a tile never straddles a group.
At 8 bits the order 4, 1, 1, 2 lets a slice leave out what it does not need, the bit that rounds it included: slices of
2 and 3 bits read 4, of 4 bits 5, of 5 bits 6, and from 6 bits on all 8.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moopt_kernels.layout import Parts, Prepacked
from moopt_kernels.packing import pack, unpack

PLANES: dict[int, tuple[int, ...]] = {
    1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 1, 1, 2),
}  # fmt: skip
FILL = 32
ELEMENTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def arrange(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Parts:
    """Codes [n, k] as one run of bytes, plane after plane; scales and zeros as they are."""
    filled = _filled(codes, group_size)
    planes = [pack((filled >> low) & (2**width - 1), width).flatten() for width, low in _places(bits)]
    return torch.cat(planes), scales.contiguous(), None if zeros is None else zeros.contiguous()


def restore(parts: Parts, bits: int, group_size: int, shape: tuple[int, int]) -> Parts:
    """What was arranged, exactly."""
    (n, k), codes = shape, parts[0]
    columns = filled_columns(k, group_size)
    filled = torch.zeros(n, columns, dtype=torch.uint8, device=codes.device)
    for plane, (width, low) in zip(split(codes, bits, n * columns), _places(bits), strict=True):
        filled |= unpack(plane.view(torch.uint8).view(n, -1), width, columns) << low
    groups = -(-k // group_size)
    return filled.view(n, groups, -1)[..., :group_size].reshape(n, -1)[:, :k].contiguous(), parts[1], parts[2]


def view_rows(weight: Prepacked, start: int, stop: int) -> Prepacked | None:
    """Consecutive rows in the same memory, where all bits of a code lie in one plane: at 1, 2 and 4 bits."""
    if len(PLANES[weight.bits]) > 1:
        return None
    size = weight.codes.numel() // weight.shape[0]
    zeros = None if weight.zeros is None else weight.zeros[start:stop]
    codes, shape = weight.codes[start * size : stop * size], (stop - start, weight.shape[1])
    return replace(weight, codes=codes, scales=weight.scales[start:stop], zeros=zeros, shape=shape)


def take_rows(weight: Prepacked, rows: Tensor) -> Prepacked:
    """A matrix of these rows [m]; IndexError where there is no such row."""
    (n, k), columns = weight.shape, filled_columns(weight.shape[1], weight.group_size)
    planes = weight.codes.split([n * columns * width // 8 for width in PLANES[weight.bits]])
    codes = torch.cat([plane.view(n, -1).index_select(0, rows).view(-1) for plane in planes])
    zeros = None if weight.zeros is None else weight.zeros.index_select(0, rows)
    scales = weight.scales.index_select(0, rows)
    return replace(weight, codes=codes, scales=scales, zeros=zeros, shape=(len(rows), k))


def split(codes: Tensor, bits: int, count: int) -> list[Tensor]:
    """The planes of `count` codes, each as the elements of eight codes that a kernel loads."""
    cuts = codes.split([count // 8 * width for width in PLANES[bits]])
    return [cut.view(ELEMENTS[width]) for cut, width in zip(cuts, PLANES[bits], strict=True)]


def filled_group(k: int, group_size: int) -> int:
    """How many codes a group takes, filled up."""
    return -(-min(k, group_size) // FILL) * FILL


def filled_columns(k: int, group_size: int) -> int:
    """How many codes a row takes, filled up."""
    return -(-k // group_size) * filled_group(k, group_size)


def _filled(codes: Tensor, group_size: int) -> Tensor:
    n, k = codes.shape
    group, groups = min(k, group_size), -(-k // group_size)
    whole = torch.nn.functional.pad(codes, (0, groups * group - k)).view(n, groups, group)
    return torch.nn.functional.pad(whole, (0, filled_group(k, group_size) - group)).view(n, -1)


def _places(bits: int) -> list[tuple[int, int]]:
    """(Width, lowest bit) of each plane."""
    widths = PLANES[bits]
    return [(width, bits - sum(widths[: i + 1])) for i, width in enumerate(widths)]
