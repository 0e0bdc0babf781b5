"""Proxies' tables that are kept in the cache: the same question is answered at once the second time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from moopt.backend import cache, checked
from moopt.backend.proxies.base import FloatArray

VERSION = 1
"""To be raised when a proxy gives other numbers: what is stored of the old ones is then made again."""
UNRELATED = ("objectives", "metrics", "held_out", "validation", "sensitivities", "sensitivity_tokens")
"""What no table depends on."""


class Tabled(Protocol):
    """A problem whose proxies can be kept."""

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Its identity tells it from others."""

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The table of a proxy."""


def table(problem: Tabled, name: str, tokens: int) -> FloatArray:
    """The table of a proxy on so many tokens of text, [decisions, options]: from the cache, else made and kept."""

    def make() -> dict[str, Tensor]:
        return {"table": torch.from_numpy(problem.sensitivities(name, tokens))}

    found: FloatArray = checked.fetch(place(problem, name, tokens), make)["table"].clone().numpy()
    return found


def place(problem: Tabled, name: str, tokens: int) -> Path:
    """Where a table is kept, if it has been made."""
    identity = problem.fingerprint()["identity"]
    asked = {key: value for key, value in identity.items() if key not in UNRELATED}
    digest = hashlib.sha256(json.dumps([VERSION, asked, name, tokens], sort_keys=True, default=str).encode())
    return cache.folder() / "proxies" / f"{name}-{digest.hexdigest()[:16]}.safetensors"
