"""Caches of keys and values that stay packed, each layer at its own pair of widths, for transformers models."""

from moopt.backend.kv.cache import PackedCache, packed_cache
from moopt.backend.kv.pairs import KIVI, PER_TOKEN, Pair, Scheme

__all__ = ["KIVI", "PER_TOKEN", "PackedCache", "Pair", "Scheme", "packed_cache"]
