"""The tensors of safetensors files: what there is from the headers alone, and one mapped at a time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moopt.errors import ModelNotFound

MIXTRAL = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
GPT_NEOX = {"embed_out": "lm_head"}
"""What a family's files call modules that transformers calls otherwise."""
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
"""The types that are mapped here; rare ones are left to the library, which reads a header anew for every tensor."""
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes that safetensors allow for a header."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is: its file, its name there, its type and shape, its first byte, and how many it takes."""

    file: Path
    key: str
    type: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    def mapped(self) -> Tensor:
        """The tensor, mapped from its file; what is written to it stays in memory."""
        dtype = TYPES.get(self.type)
        if dtype is None or self.start % dtype.itemsize:
            with safe_open(self.file, "pt") as file:
                tensor: Tensor = file.get_tensor(self.key)
                return tensor
        until = torch.from_file(str(self.file), shared=False, size=self.start + self.bytes, dtype=torch.uint8)
        return until[self.start :].view(dtype).reshape(self.shape)


class Shards(Mapping[str, Tensor]):
    """The tensors of some files by name, on the CPU, each mapped from its file when it is asked for.

    A mapping lasts as long as the tensor does: who lets go of it gives the memory back. A file that is cut off while a
    tensor is mapped ends the process (SIGBUS), as with every mapping.

    Args:
        files: The files.
        named: What a tensor is called here, from its name in the file.

    Attributes:
        places: Where each tensor is.

    Raises:
        ValueError: a file is no safetensors file, or was cut off; says which.
    """

    def __init__(self, files: Iterable[Path], named: Callable[[str], str] = str) -> None:
        opened = [file.absolute() for file in files]
        self.places = {named(key): place for file in opened for key, place in _header(file).items()}
        self._states = {file: _state(file) for file in opened}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that name.

        Raises:
            ModelNotFound: its file has changed since it was opened, or is gone.
        """
        place = self.places[name]
        if _state(place.file) != self._states[place.file]:
            raise ModelNotFound(f"{place.file} has changed since it was opened, or is gone. Open the model again.")
        return place.mapped()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def count(self, name: str) -> int:
        """How many numbers a tensor has."""
        return math.prod(self.places[name].shape)


def _state(file: Path) -> tuple[int, ...]:
    """What is other once a file was replaced or written to; nothing if it is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _header(file: Path) -> dict[str, Place]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            if length > min(size, LONGEST_HEADER):
                raise ValueError(f"its header would take {length} bytes")
            entries = json.loads(opened.read(length))
        entries.pop("__metadata__", None)
        found = {key: _place(file, key, entry, 8 + length) for key, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error
    expected = 8 + length + sum(place.bytes for place in found.values())
    if expected != size:
        raise ValueError(f"{file} is damaged: it has {size} bytes, expected {expected}")
    try:
        with safe_open(file, "pt"):  # reads the header once more, and refuses what no tensor can be made of
            return found
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _place(file: Path, key: str, entry: Mapping[str, Any], data: int) -> Place:
    """Where an entry of a header is, whose data begin at a byte of the file."""
    first, last = entry["data_offsets"]
    return Place(file, key, entry["dtype"], tuple(entry["shape"]), data + first, last - first)


def of_model(folder: Path, named: Callable[[str], str] | None = None) -> Shards:
    """The tensors of a model, from model.safetensors or, without it, the shards that its index lists.

    Args:
        folder: The model's.
        named: What a tensor is called here, from its name in the file; None: as transformers calls it.

    Raises:
        ModelNotFound: they are not there, or damaged; says which.
    """
    named, listed = named or renamed, _listed(folder)
    files = [folder / name for name in sorted(set(listed.values()))] or [folder / "model.safetensors"]
    if missing := [file for file in files if not os.path.exists(file)]:
        raise ModelNotFound(f"There is no {missing[0]}; expected the model's safetensors in its folder.")
    try:
        found = Shards(files, named)
    except ValueError as error:
        raise ModelNotFound(f"{error}. Copy the model again.") from error
    if lacking := [name for name in listed if named(name) not in found]:
        raise ModelNotFound(
            f"{folder / listed[lacking[0]]} lacks {lacking[0]!r}, which the index lists. Copy it again."
        )
    return found


def _listed(folder: Path) -> dict[str, str]:
    """The file that each tensor is in, as the index says; nothing for a model in one file, which comes first."""
    index = folder / INDEX
    if os.path.exists(folder / "model.safetensors") or not index.exists():
        return {}
    try:
        found = dict(json.loads(index.read_text())["weight_map"])
        if not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError("it names no files")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{index} cannot be read: {error!r}. Copy it again.") from error


def in_files(name: str, model_type: str) -> str:
    """What a family's files call a parameter or a module: the inverse of `renamed`."""
    parts = name.split(".")
    if model_type != "mixtral" or "mlp" not in parts:
        return name
    back = {ours: theirs for theirs, ours in MIXTRAL.items()}
    return ".".join(back.get(part, part) for part in parts)


def renamed(name: str) -> str:
    """A parameter's name in a file as the model has it."""
    parts = name.split(".")
    other = MIXTRAL if "block_sparse_moe" in parts else GPT_NEOX
    return ".".join(other.get(part, part) for part in parts)
