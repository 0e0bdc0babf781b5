"""Prepacked: a quantized matrix as a device's kernels read it. `prepack` makes one, `unprepack` undoes it exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.dispatch import Layout
from moopt_kernels.packing import check_codes

Parts = tuple[Tensor, Tensor, Tensor | None]
"""Codes, scales and zeros."""


@dataclass(frozen=True, eq=False)
class Prepacked:
    """A quantized matrix, n x k: value = scale * (code * 2**shift - zero).

    Attributes:
        codes: The codes in the layout's order, uint8.
        scales: Scale of each group in the layout's order, bfloat16.
        zeros: Zero point of each group in the layout's order, uint8; None for the middle, 2**(bits + shift - 1).
        bits: Width of a code, 1 to 8.
        group_size: How many inputs share a scale; the last group of a row may be shorter.
        shape: (n, k): outputs, inputs.
        layout: Which implementation reads it.
        shift: 0; 8 - bits for a slice that was repacked from an 8-bit parent and keeps the parent's scales and zeros.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int
    shape: tuple[int, int]
    layout: Layout
    shift: int = 0

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name, to be stored; where there are no zeros they are left out."""
        found = {"codes": self.codes, "scales": self.scales, "zeros": self.zeros}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """What it takes in memory, in bytes."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def prepack(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bits: int,
    group_size: int,
    layout: Layout | None = None,
    shift: int = 0,
) -> Prepacked:
    """Put a quantized matrix into the order that kernels read.

    Args:
        codes: n x k, uint8, below 2**bits.
        scales: n x ceil(k / group_size), bfloat16.
        zeros: Like the scales, uint8; None for the middle of the codes.
        bits: 1 to 8.
        group_size: How many inputs share a scale.
        layout: None: what runs on the codes' device.
        shift: See `Prepacked`.

    Raises:
        ValueError: types or shapes do not fit each other, or a code its width.
        KernelError: the layout's kernels cannot run here.
    """
    check(codes, scales, zeros, bits, group_size)
    check_codes(codes, bits)
    if shift not in (0, 8 - bits):
        raise ValueError(f"Got the shift {shift}; expected 0, or {8 - bits} for a slice of {bits} bits.")
    layout = layout or dispatch.choose_layout(codes.device)
    dispatch.check_device(layout, codes.device)
    arranged: Parts = dispatch.home(layout).arrange(codes, scales, zeros, bits, group_size)
    return Prepacked(*arranged, bits, group_size, (codes.shape[0], codes.shape[1]), layout, shift)


def unprepack(weight: Prepacked) -> Parts:
    """Codes [n, k], scales and zeros [n, ceil(k / group_size)] of a prepacked matrix, bit-exact."""
    arranged = (weight.codes, weight.scales, weight.zeros)
    parts: Parts = dispatch.home(weight.layout).restore(arranged, weight.bits, weight.group_size, weight.shape)
    return parts


def rearrange(weight: Prepacked, device: torch.device | str, layout: Layout | None = None) -> Prepacked:
    """The same matrix on a device, in another layout.

    Args:
        weight: In any layout.
        device: Where it is to be.
        layout: None: what runs there.

    Raises:
        KernelError: one of the layouts cannot run here.
    """
    layout = layout or dispatch.choose_layout(device)
    if layout == weight.layout and weight.codes.device == torch.empty(0, device=device).device:
        return weight
    home = dispatch.home(layout)
    unstream = getattr(home, "unstream", None)
    if weight.layout == "plain" and unstream is not None:  # faster than the reference
        codes = unstream(weight.codes.to(device), weight.shape[1], weight.bits)
        scales, zeros = weight.scales, weight.zeros
    else:
        codes, scales, zeros = unprepack(weight)
    zeros = None if zeros is None else zeros.to(device)
    parts = (codes.to(device), scales.to(device), zeros, weight.bits, weight.group_size)
    check(*parts)
    arranged: Parts = home.arrange(*parts)
    return Prepacked(*arranged, weight.bits, weight.group_size, weight.shape, layout, weight.shift)


def layout_name(layout: Layout) -> str:
    """A layout with the version of how it lies in memory: what is stored under the same name can be read.

    Raises:
        KernelError: it cannot run here.
    """
    return f"{layout}-{getattr(dispatch.home(layout), 'VERSION', 1)}"


def groups(k: int, group_size: int) -> int:
    """How many groups a row of k inputs has."""
    return -(-k // group_size)


def check(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> None:
    """Refuse what is no quantized matrix.

    Raises:
        ValueError: names what came and what was expected.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"Got the width {bits}; expected 1 to 8.")
    if group_size < 1:
        raise ValueError(f"Got the group size {group_size}; expected a whole number of at least 1.")
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ValueError(f"Got codes of {codes.dtype} and shape {tuple(codes.shape)}; expected uint8, [n, k].")
    if 0 in codes.shape:
        raise ValueError(f"Got codes of shape {tuple(codes.shape)}; expected at least 1 x 1.")
    expected = (codes.shape[0], groups(codes.shape[1], group_size))
    if scales.dtype != torch.bfloat16 or tuple(scales.shape) != expected:
        raise ValueError(
            f"Got scales of {scales.dtype} and shape {tuple(scales.shape)}; expected bfloat16, {list(expected)}, "
            f"for codes of shape {list(codes.shape)} in groups of {group_size}."
        )
    if zeros is not None and (zeros.dtype != torch.uint8 or zeros.shape != scales.shape):
        raise ValueError(
            f"Got zeros of {zeros.dtype} and shape {tuple(zeros.shape)}; expected uint8, {list(expected)}, or None."
        )
