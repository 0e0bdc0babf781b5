"""The header of a GGUF file: its architecture and where its tensors are, without the vocabulary that is most of it.

See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the numbers, by the code of their type."""
STRING, ARRAY, UINT32 = 8, 9, 4


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        shape: Outputs first, as in PyTorch: GGUF has it the other way round.
        kind: The code of its type.
        begin: Its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    begin: int


@dataclass(frozen=True)
class Header:
    """What the header says."""

    architecture: str
    tensors: dict[str, Place]


def read(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        OSError, ValueError, OverflowError, struct.error: it is no GGUF file of version 2 or 3, or is cut off.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Cursor(data).header()


class _Cursor:
    """A place in a file that moves on with what is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def header(self) -> Header:
        magic, version, tensors, entries = self._numbers("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r} and version {version}, expected b'GGUF' and 2 or 3")
        found: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            found[key] = self._value(*self._numbers("<I"))
        places = {}
        for _ in range(tensors):
            name = self._text()
            shape = self._numbers(f"<{self._numbers('<I')[0]}Q")
            kind, offset = self._numbers("<IQ")
            places[name] = Place(tuple(reversed(shape)), kind, offset)
        alignment = found.get("general.alignment") or 32
        start = -(-self._at // alignment) * alignment
        moved = {name: Place(place.shape, place.kind, start + place.begin) for name, place in places.items()}
        return Header(str(found.get("general.architecture")), moved)

    def _value(self, kind: int) -> Any:
        """A value that matters: a string, or a whole number of 32 bits; others are passed over."""
        if kind == STRING:
            return self._text()
        if kind == UINT32:
            return self._numbers("<I")[0]
        if kind == ARRAY:
            item, count = self._numbers("<IQ")
            if item in SIZES:
                self._at += SIZES[item] * count
            for _ in range(0 if item in SIZES else count):
                self._pass_over(item)
        else:
            self._pass_over(kind)
        return None

    def _pass_over(self, kind: int) -> None:
        if kind == STRING:
            size = self._numbers("<Q")[0]  # moves on, too
            self._at += size
        elif kind == ARRAY:
            self._value(kind)
        elif kind in SIZES:
            self._at += SIZES[kind]
        else:
            raise ValueError(f"it has a value of the unknown type {kind}")

    def _text(self) -> str:
        size = self._numbers("<Q")[0]
        begin, self._at = self._at, self._at + size
        return self._data[begin : self._at].decode(errors="replace")

    def _numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return found
