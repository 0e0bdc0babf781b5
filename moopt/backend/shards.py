"""The tensors of safetensors files: what there is from the headers alone, and one mapped at a time."""

from __future__ import annotations

import json
import math
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

    A mapping lasts as long as the tensor does: who lets go of it gives the memory back.

    Args:
        files: The files.
        named: What a tensor is called here, from its name in the file.

    Attributes:
        places: Where each tensor is.

    Raises:
        ValueError: a file is no safetensors file, or was cut off; says which.
    """

    def __init__(self, files: Iterable[Path], named: Callable[[str], str] = str) -> None:
        self.places = {named(key): place for file in files for key, place in _header(file).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name].mapped()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def count(self, name: str) -> int:
        """How many numbers a tensor has."""
        return math.prod(self.places[name].shape)


def _header(file: Path) -> dict[str, Place]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            entries = json.loads(opened.read(min(length, size)))
        entries.pop("__metadata__", None)
        found = {key: _place(file, key, entry, 8 + length) for key, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
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
    """The tensors of a model, from model.safetensors or the shards that its index lists.

    Args:
        folder: The model's.
        named: What a tensor is called here, from its name in the file; None: as transformers calls it.

    Raises:
        ModelNotFound: they are not there, or damaged; says which.
    """
    files = _files(folder)
    if missing := [file for file in files if not file.exists()]:
        raise ModelNotFound(f"There is no {missing[0]}; expected the model's safetensors in its folder.")
    try:
        return Shards(files, named or renamed)
    except ValueError as error:
        raise ModelNotFound(f"{error}. Copy the model again.") from error


def _files(folder: Path) -> list[Path]:
    """The files that a model's tensors are in: those that its index lists, or the only one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
