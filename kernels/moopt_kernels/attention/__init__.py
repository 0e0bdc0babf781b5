"""Attention over a packed cache of keys and values."""

from moopt_kernels.attention.cache import KVCache, kv_append, kv_cache
from moopt_kernels.attention.changes import kv_crop, kv_dequantize, kv_move, kv_reserve, kv_select
from moopt_kernels.attention.ops import quantized_kv_attention

__all__ = [
    "KVCache",
    "kv_append",
    "kv_cache",
    "kv_crop",
    "kv_dequantize",
    "kv_move",
    "kv_reserve",
    "kv_select",
    "quantized_kv_attention",
]
