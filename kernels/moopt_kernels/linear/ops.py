"""quantized_linear and sliced_linear: one torch operator a layout, and the thin functions that unpack a Prepacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.inference import wants_gradient, without_gradient
from moopt_kernels.layout import Prepacked
from moopt_kernels.linear import reference

MATRIX = "Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, int n, int bits, int group_size"
SCHEMAS = {"quantized_linear": f"({MATRIX}, int shift) -> Tensor", "sliced_linear": f"({MATRIX}) -> Tensor"}


def quantized_linear(x: Tensor, weight: Prepacked, bias: Tensor | None = None) -> Tensor:
    """Compute y = x W^T + bias, read from packed codes.

    Args:
        x: [..., k] in bfloat16, float16 or float32.
        weight: n x k, of any width.
        bias: [n], floating point; None for none.

    Returns:
        [..., n] in x's type.

    Raises:
        ValueError: x's last dimension or type does not fit, or the bias does not.
        KernelError: the weight's layout cannot run here; or y's gradient is asked for, which there is none of.
    """
    op = _operator("quantized_linear", x, weight, bias)
    n, bits, group = weight.shape[0], weight.bits, weight.group_size
    arguments = (x, weight.codes, weight.scales, weight.zeros, bias, n, bits, group, weight.shift)
    y: Tensor = without_gradient(op, *arguments) if wants_gradient(x, bias) else op(*arguments)
    return y


def sliced_linear(x: Tensor, parent: Prepacked, bits: int, bias: Tensor | None = None) -> Tensor:
    """Compute y = x W^T + bias with W the `bits`-bit slice of an 8-bit parent, sliced as it is read (MatGPTQ).

    Args:
        x: [..., k] in bfloat16, float16 or float32.
        parent: n x k at 8 bits.
        bits: Width of the slice, 1 to 8.
        bias: [n], floating point; None for none.

    Returns:
        [..., n] in x's type.

    Raises:
        ValueError: the parent has not 8 bits, the width is no slice's, or x or the bias does not fit.
        KernelError: the parent's layout cannot run here; or y's gradient is asked for, which there is none of.
    """
    if parent.bits != 8 or not 1 <= bits <= 8:
        raise ValueError(f"Got a slice of {bits} bits from a parent of {parent.bits}; expected 1 to 8 bits from 8.")
    op = _operator("sliced_linear", x, parent, bias)
    arguments = (x, parent.codes, parent.scales, parent.zeros, bias, parent.shape[0], bits, parent.group_size)
    y: Tensor = without_gradient(op, *arguments) if wants_gradient(x, bias) else op(*arguments)
    return y


def _operator(name: str, x: Tensor, weight: Prepacked, bias: Tensor | None) -> Any:
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"Got x of shape {list(x.shape)}; expected [..., {weight.shape[1]}] for a weight n x k.")
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"Got x of {x.dtype}; expected bfloat16, float16 or float32.")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_floating_point()):
        raise ValueError(
            f"Got a bias of {bias.dtype} and shape {list(bias.shape)}; expected floating point, [{weight.shape[0]}]."
        )
    if weight.layout not in dispatch.READY:
        dispatch.home(weight.layout)
    return _operators[name, weight.layout]


def _result(x: Tensor, codes: Tensor, scales: Tensor, zeros: Any, bias: Any, n: int, *rest: int) -> Tensor:
    dispatch.check_together(x, codes, bias)
    return x.new_empty([*x.shape[:-1], n])


_operators: dict[tuple[str, str], Any] = {}
_library = torch.library.Library("moopt", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    for _layout in dispatch.LAYOUTS:
        _library.define(f"{_name}_{_layout}{_schema}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"moopt::{_name}_{_layout}", _result, lib=_library)
        _operators[_name, _layout] = getattr(torch.ops.moopt, f"{_name}_{_layout}").default
    _library.impl(f"{_name}_plain", getattr(reference, _name), "CompositeExplicitAutograd")
