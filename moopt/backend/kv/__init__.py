"""Caches of keys and values that stay packed, each layer at its own pair of widths, for transformers models."""

from moopt.backend.kv import exports
from moopt.backend.kv.cache import PackedCache, packed_cache
from moopt.backend.kv.groups import Group, cluster, prune
from moopt.backend.kv.pairs import KIVI, PER_TOKEN, Pair, Scheme
from moopt.backend.kv.presets import Preset, load_preset
from moopt.backend.kv.profile import Profile, profile

__all__ = [
    "KIVI",
    "PER_TOKEN",
    "Group",
    "PackedCache",
    "Pair",
    "Preset",
    "Profile",
    "Scheme",
    "cluster",
    "exports",
    "load_preset",
    "packed_cache",
    "profile",
    "prune",
]
