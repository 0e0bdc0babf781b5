"""Readies the Triton kernels and gives the triton layout's conversions; see `dispatch.HOMES`.

Triton launches on the current GPU: each operation makes its tensors' own the current one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch

from moopt_kernels.attention import triton as _attention
from moopt_kernels.gpu.planes import arrange, restore, take_rows, view_rows
from moopt_kernels.linear import triton as _linear
from moopt_kernels.quantize import triton as _quantize

__all__ = ["arrange", "dequantize", "quantize_weight", "restore", "slice_repack", "take_rows", "view_rows"]


First = TypeVar("First")
P = ParamSpec("P")
R = TypeVar("R")


def _there(run: Callable[Concatenate[First, P], R]) -> Callable[Concatenate[First, P], R]:
    """Run on the GPU of the first argument, a tensor or a Prepacked."""

    @functools.wraps(run)
    def guarded(first: First, /, *rest: P.args, **named: P.kwargs) -> R:
        with torch.cuda.device_of(getattr(first, "codes", first)):
            return run(first, *rest, **named)

    return guarded


dequantize = _there(_quantize.dequantize)
quantize_weight = _there(_quantize.quantize_weight)
slice_repack = _there(_quantize.slice_repack)
_library = torch.library.Library("moopt", "FRAGMENT")
_library.impl("quantized_linear_triton", _there(_linear.quantized_linear), "CompositeExplicitAutograd")
_library.impl("sliced_linear_triton", _there(_linear.sliced_linear), "CompositeExplicitAutograd")
_library.impl("kv_attention_triton", _there(_attention.kv_attention), "CompositeExplicitAutograd")
