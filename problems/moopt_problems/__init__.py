"""moopt's own problems, its first plug-ins. Names are imported when first used: models need torch, toys do not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moopt_problems.bit_allocation import BitAllocation as BitAllocation
    from moopt_problems.joint import Joint as Joint
    from moopt_problems.kv_precision import KVCachePrecision as KVCachePrecision
    from moopt_problems.model_merge import ModelMerge as ModelMerge

_HOMES = {
    "BitAllocation": "bit_allocation",
    "Joint": "joint",
    "KVCachePrecision": "kv_precision",
    "ModelMerge": "model_merge",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"moopt_problems.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'moopt_problems' has no attribute {name!r}")
