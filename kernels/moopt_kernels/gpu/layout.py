"""Readies the Triton kernels and gives the triton layout's conversions; see `dispatch.HOMES`."""

import torch

from moopt_kernels.attention import triton as _attention
from moopt_kernels.gpu.planes import arrange, restore
from moopt_kernels.linear import triton as _linear
from moopt_kernels.quantize.triton import dequantize, quantize_weight, slice_repack

__all__ = ["arrange", "restore", "dequantize", "quantize_weight", "slice_repack"]

_library = torch.library.Library("moopt", "FRAGMENT")
_library.impl("quantized_linear_triton", _linear.quantized_linear, "CompositeExplicitAutograd")
_library.impl("sliced_linear_triton", _linear.sliced_linear, "CompositeExplicitAutograd")
_library.impl("kv_attention_triton", _attention.kv_attention, "CompositeExplicitAutograd")
