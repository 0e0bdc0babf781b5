"""Low-bit storage and kernels. Knows torch and triton, not moopt; importing it compiles nothing."""

from moopt_kernels.attention import KVCache, kv_append, kv_cache, quantized_kv_attention
from moopt_kernels.dispatch import KernelError, calls, choose_layout, reset_calls
from moopt_kernels.layout import Prepacked, prepack, unprepack
from moopt_kernels.linear import quantized_linear, sliced_linear
from moopt_kernels.packing import pack, packed_columns, unpack
from moopt_kernels.quantize import dequantize, quantize_weight, slice_repack

__all__ = [
    "KVCache",
    "KernelError",
    "Prepacked",
    "calls",
    "choose_layout",
    "dequantize",
    "kv_append",
    "kv_cache",
    "pack",
    "packed_columns",
    "prepack",
    "quantize_weight",
    "quantized_kv_attention",
    "quantized_linear",
    "reset_calls",
    "slice_repack",
    "sliced_linear",
    "unpack",
    "unprepack",
]
