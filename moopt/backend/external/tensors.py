"""The tensors of a folder of safetensors files: what there is from the headers alone, and one read at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from moopt.errors import QuantizationError


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what it takes."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Tensors:
    """Of some files.

    Raises:
        QuantizationError: one is no safetensors file, or was cut off.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.places = {name: place for file in files for name, place in _header(file).items()}

    def bytes(self, prefix: str) -> int:
        """What the tensors of a module take, its bias left out."""
        parts = {n.removeprefix(f"{prefix}."): p.bytes for n, p in self.places.items() if n.startswith(f"{prefix}.")}
        return sum(size for part, size in parts.items() if "." not in part and part != "bias")

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        with safe_open(self.places[name].file, "pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def maybe(self, name: str) -> Tensor | None:
        """A tensor, if there is one of that name."""
        return self.read(name) if name in self.places else None


def _header(file: Path) -> dict[str, Place]:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            entries = json.loads(opened.read(min(length, size)))
        entries.pop("__metadata__", None)
        found = {
            name: Place(file, tuple(e["shape"]), e["dtype"], e["data_offsets"][1] - e["data_offsets"][0])
            for name, e in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise QuantizationError(f"{file} is no safetensors file: {error}.") from error
    expected = 8 + length + sum(place.bytes for place in found.values())
    if expected != size:
        raise QuantizationError(f"{file} is damaged: it has {size} bytes, expected {expected}. Copy it again.")
    return found
