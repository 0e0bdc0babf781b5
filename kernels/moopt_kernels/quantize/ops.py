"""quantize_weight, slice_repack and dequantize on whatever implementation runs: a Prepacked in or out."""

from __future__ import annotations

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.dispatch import Layout
from moopt_kernels.layout import Prepacked, prepack, unprepack
from moopt_kernels.quantize import reference


def quantize_weight(
    weight: Tensor, bits: int, group_size: int, symmetric: bool = False, layout: Layout | None = None
) -> Prepacked:
    """Round a matrix to the nearest codes and pack them.

    Args:
        weight: n x k, floating point.
        bits: 2 to 8.
        group_size: How many inputs share a scale; the last group of a row may be shorter.
        symmetric: Whether zero is the middle of the codes, so that no zero points are stored.
        layout: None: what runs on the weight's device.

    Raises:
        ValueError: the width or the shape is none that can be quantized.
        KernelError: the layout's kernels cannot run here.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"Got a {weight.dtype} of shape {list(weight.shape)}; expected floating point, [n, k].")
    if 0 in weight.shape:
        raise ValueError(f"Got a weight of shape {list(weight.shape)}; expected at least 1 x 1.")
    whole = all(hasattr(number, "__index__") for number in (bits, group_size))
    if not whole or not 2 <= bits <= 8 or group_size < 1:
        raise ValueError(
            f"Got {bits!r} bits in groups of {group_size!r}; expected whole numbers, 2 to 8 bits and a group of at "
            "least 1."
        )
    layout = layout or dispatch.choose_layout(weight.device)
    dispatch.check_device(layout, weight.device)
    if fast := getattr(dispatch.home(layout), "quantize_weight", None):
        found: Prepacked = fast(weight, bits, group_size, symmetric)
        return found
    dispatch.count("quantize_weight", "reference")
    if symmetric:
        codes, scales = reference.quantize_weight_symmetric(weight, bits, group_size)
        return prepack(codes, scales, None, bits, group_size, layout)
    return prepack(*reference.quantize_weight(weight, bits, group_size), bits, group_size, layout)


def slice_repack(parent: Prepacked, bits: int) -> Prepacked:
    """The `bits`-bit slice of an 8-bit parent as a matrix of its own; it shares the parent's scales and zeros.

    Raises:
        ValueError: the parent has not 8 bits, or the width is no slice's.
        KernelError: the parent's layout cannot run here.
    """
    check_slice(parent, bits)
    if bits == 8:
        return parent
    if fast := getattr(dispatch.home(parent.layout), "slice_repack", None):
        found: Prepacked = fast(parent, bits)
        return found
    dispatch.count("slice_repack", "reference")
    codes, scales, zeros = unprepack(parent)
    sliced = reference.sliced_codes(codes, bits)
    return prepack(sliced, scales, zeros, bits, parent.group_size, parent.layout, shift=8 - bits)


def dequantize(weight: Prepacked, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [n, k] that a prepacked one stands for.

    Raises:
        KernelError: the weight's layout cannot run here.
    """
    if fast := getattr(dispatch.home(weight.layout), "dequantize", None):
        found: Tensor = fast(weight, dtype)
        return found
    dispatch.count("dequantize", "reference")
    parts = unprepack(weight)
    return reference.dequantize(*parts, weight.bits, weight.group_size, weight.shift).to(dtype)


def check_slice(parent: Prepacked, bits: int | None) -> None:
    """Refuse a slice of what is no 8-bit parent, and a width that is no slice's; None is no slice.

    Raises:
        ValueError: names what came and what was expected.
    """
    if bits is not None and (parent.bits != 8 or not 1 <= bits <= 8):
        raise ValueError(f"Got a slice of {bits} bits from a parent of {parent.bits}; expected 1 to 8 bits from 8.")
