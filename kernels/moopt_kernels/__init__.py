"""Low-bit storage and kernels. Knows torch and triton, not moopt; importing it compiles nothing."""

from moopt_kernels.attention import (
    KVCache,
    kv_append,
    kv_cache,
    kv_crop,
    kv_dequantize,
    kv_move,
    kv_reserve,
    kv_select,
    quantized_kv_attention,
)
from moopt_kernels.dispatch import KernelError, calls, choose_layout, reset_calls
from moopt_kernels.layout import Prepacked, layout_name, prepack, rearrange, unprepack
from moopt_kernels.linear import quantized_linear, sliced_linear
from moopt_kernels.packing import pack, packed_columns, unpack
from moopt_kernels.quantize import dequantize, quantize_weight, slice_repack, sliced_codes
from moopt_kernels.rows import dequantize_rows, split_rows

__all__ = [
    "KVCache",
    "KernelError",
    "Prepacked",
    "calls",
    "choose_layout",
    "dequantize",
    "dequantize_rows",
    "kv_append",
    "kv_cache",
    "kv_crop",
    "kv_dequantize",
    "kv_move",
    "kv_reserve",
    "kv_select",
    "layout_name",
    "pack",
    "packed_columns",
    "prepack",
    "quantize_weight",
    "quantized_kv_attention",
    "quantized_linear",
    "rearrange",
    "reset_calls",
    "slice_repack",
    "sliced_codes",
    "sliced_linear",
    "split_rows",
    "unpack",
    "unprepack",
]
