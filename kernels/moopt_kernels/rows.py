"""Some rows of a prepacked matrix: consecutive ones as views, single ones dequantized (an embedding's look-up)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.layout import Prepacked
from moopt_kernels.quantize import dequantize, slice_repack
from moopt_kernels.quantize.ops import check_slice


def split_rows(weight: Prepacked, sizes: Sequence[int]) -> list[Prepacked] | None:
    """Matrices of so many consecutive rows each, that share the memory of `weight`.

    Returns:
        None where the layout stores rows in blocks that the sizes do not fit.

    Raises:
        ValueError: the sizes do not add up to the matrix's rows, or one is less than 1.
    """
    if sum(sizes) != weight.shape[0] or min(sizes) < 1:
        raise ValueError(f"Got the sizes {list(sizes)}; expected {weight.shape[0]} rows in all, 1 or more in each.")
    view = getattr(dispatch.home(weight.layout), "view_rows", None)
    views = [view(weight, a, b) if view else None for a, b in pairwise((0, *accumulate(sizes)))]
    found = [v for v in views if v is not None]
    return found if len(found) == len(sizes) else None


def dequantize_rows(
    weight: Prepacked, rows: Tensor, dtype: torch.dtype = torch.float32, bits: int | None = None
) -> Tensor:
    """Chosen rows of the matrix that a prepacked one stands for.

    Args:
        weight: n x k.
        rows: Whole numbers from 0 to n - 1, of any shape [...].
        dtype: Of the result.
        bits: Width of the slice, where the matrix is an 8-bit parent; None for the matrix itself.

    Returns:
        [..., k].

    Raises:
        ValueError: a slice of what is no 8-bit parent, or rows that are no whole numbers.
        IndexError: there is no such row. On a GPU PyTorch's own assertion says so, later.
        KernelError: the weight's layout cannot run here.
    """
    check_slice(weight, bits)
    if rows.dtype == torch.bool or rows.is_floating_point():
        raise ValueError(f"Got rows of {rows.dtype}; expected whole numbers.")
    home, flat = dispatch.home(weight.layout), rows.reshape(-1)
    if fast := getattr(home, "dequantize_rows", None):
        found: Tensor = fast(weight, flat, dtype, bits)
    else:
        part = home.take_rows(weight, flat)
        found = dequantize(part if bits is None else slice_repack(part, bits), dtype)
    return found.view(*rows.shape, weight.shape[1])
