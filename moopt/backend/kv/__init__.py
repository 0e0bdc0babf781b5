"""Caches of keys and values that stay packed, each layer at its own pair of widths, for transformers models.

Names are imported when first used (PEP 562): pictures of studies need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moopt.backend.kv import exports as exports
    from moopt.backend.kv.cache import PackedCache as PackedCache
    from moopt.backend.kv.cache import packed_cache as packed_cache
    from moopt.backend.kv.groups import Group as Group
    from moopt.backend.kv.groups import cluster as cluster
    from moopt.backend.kv.groups import prune as prune
    from moopt.backend.kv.pairs import KIVI as KIVI
    from moopt.backend.kv.pairs import PER_TOKEN as PER_TOKEN
    from moopt.backend.kv.pairs import Pair as Pair
    from moopt.backend.kv.pairs import Scheme as Scheme
    from moopt.backend.kv.presets import Preset as Preset
    from moopt.backend.kv.presets import load_preset as load_preset
    from moopt.backend.kv.profiling import Profile as Profile
    from moopt.backend.kv.profiling import profile as profile

_HOMES = {
    "Group": "groups",
    "KIVI": "pairs",
    "PER_TOKEN": "pairs",
    "PackedCache": "cache",
    "Pair": "pairs",
    "Preset": "presets",
    "Profile": "profiling",
    "Scheme": "pairs",
    "cluster": "groups",
    "load_preset": "presets",
    "packed_cache": "cache",
    "profile": "profiling",
    "prune": "groups",
}

__all__ = ["exports", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"moopt.backend.kv.{_HOMES[name]}"), name)
    if name == "exports":
        return import_module("moopt.backend.kv.exports")
    raise AttributeError(f"module 'moopt.backend.kv' has no attribute {name!r}")
