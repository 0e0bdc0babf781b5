"""moopt's packed file: one safetensors file, and exactly how many bytes it takes before it is written.

Every quantized matrix is three tensors, `<name>.scales` (bfloat16), `<name>.codes` (packed bytes) and, if asymmetric,
`<name>.zeros` (uint8), and if it has a low-rank repair two more, `<name>.up` and `<name>.down` (bfloat16); all the rest
stays as it is named, in bfloat16. The header (`moopt.backend.header`) carries the model's configuration and how it
generates, the widths, whether they are slices of 8-bit parents, the inputs of matrices that the group size does not
divide, a checksum of every tensor and one of itself, and, where the matrices are 8-bit Matryoshka parents, any number
of named slice maps: the width at which each matrix is to be read. It is padded to the length it has with the widest
codes and the highest rank everywhere, so that the size of a file is a sum over its matrices.

The tokenizer is not in the file: transformers' own files stand beside it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moopt.backend.header import BLANK, FORMAT, TYPES, Header, Place, checksum, parse
from moopt.backend.options import Option, Options, bits_of, named, rank_of
from moopt.backend.quantizers import Quantized, Repair
from moopt.backend.weights import Inventory, Weight
from moopt.errors import BackendError
from moopt.whole import whole_file
from moopt_kernels import Prepacked, pack, packed_columns

Slices = Mapping[str, Options]
"""Slice maps by name."""


@dataclass(frozen=True)
class Layout:
    """How a model is stored: decides every byte but the widths'.

    Attributes:
        inventory: The model's matrices and the rest.
        group_size: How many inputs share a scale.
        symmetric: Whether zero points are left out.
        plain: Names of matrices that stay at 16 bits.
        config: The model's configuration as JSON, for `moopt.load`.
        generation: How it generates, as JSON: when it stops, and the like.
        sliced: Whether matrices of fewer than 8 bits are slices of 8-bit parents, whose scales and zeros they have.
        binary: Matrices of at most so many bits have a scale for each bit, and no zero points; 0 for none.
        rank: The highest rank of a repair beside a linear layer.
    """

    inventory: Inventory
    group_size: int
    symmetric: bool
    plain: frozenset[str] = frozenset()
    config: str = ""
    generation: str = ""
    sliced: bool = False
    binary: int = 0
    rank: int = 0

    def matrix_bytes(self, weight: Weight, option: Option) -> int:
        """What one matrix takes at a width, its repair included."""
        return sum(size for _, _, size in self._parts(weight, option).values())

    def fixed_bytes(self, slices: Slices | None = None) -> int:
        """What every file of the model takes: the header and all that stays at 16 bits."""
        return len(self.header(self._widest(), slices)) + sum(s for _, _, s in self._plain_parts().values())

    def total_bytes(self, widths: Options, slices: Slices | None = None) -> int:
        """What the file takes."""
        return self.fixed_bytes(slices) + sum(self.matrix_bytes(w, widths[w.name]) for w in self._quantized())

    def header(self, widths: Options, slices: Slices | None = None, checks: str | None = None) -> bytes:
        """The first bytes of the file: its length and the JSON that names every tensor, padded with spaces.

        Args:
            widths: Of every matrix.
            slices: Slice maps.
            checks: The tensors' checksums in the order of the file; None leaves their places blank.
        """
        text = self._json(widths, slices, checks)
        widest = self._widest()
        full = len(self._json({name: widest[name] for name in widths}, slices, None))
        padded = -(-full // 8) * 8
        text = text.replace(BLANK, checksum(text), 1)  # its own checksum comes first
        return struct.pack("<Q", padded) + text.encode().ljust(padded)

    def tensors(self, widths: Options) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """Type, shape and bytes of every tensor by name, in the order of the file: 16-bit ones first, for alignment."""
        parts = self._plain_parts()
        for weight in self._quantized():
            parts |= self._parts(weight, widths[weight.name])
        return dict(sorted(parts.items(), key=lambda part: part[1][0]))

    def unquantized(self) -> tuple[str, ...]:
        """The names of the parameters that stay at 16 bits."""
        return tuple(self._plain_parts())

    def _quantized(self) -> Iterator[Weight]:
        return (w for w in self.inventory.weights if w.name not in self.plain)

    def _widest(self) -> dict[str, Option]:
        """What makes the longest header."""
        return {w.name: named(8, self.rank if w.kind == "linear" else 0) for w in self._quantized()}

    def _plain_parts(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        shapes = {f"{w.name}.weight": w.shape for w in self.inventory.weights if w.name in self.plain}
        shapes |= self.inventory.rest  # type: ignore[arg-type]
        return {name: ("BF16", shape, 2 * int(torch.Size(shape).numel())) for name, shape in shapes.items()}

    def _parts(self, weight: Weight, option: Option) -> dict[str, tuple[str, tuple[int, ...], int]]:
        (n, k), bits, rank = weight.shape, bits_of(option), rank_of(option)
        groups = -(-k // self.group_size)
        columns = packed_columns(k, bits)
        scales = (n, groups, bits) if bits <= self.binary else (n, groups)
        parts: dict[str, tuple[str, tuple[int, ...], int]] = {
            f"{weight.name}.scales": ("BF16", scales, 2 * math.prod(scales)),
            f"{weight.name}.codes": ("U8", (n, columns), n * columns),
        }
        if not self.symmetric and bits > self.binary:
            parts[f"{weight.name}.zeros"] = ("U8", (n, groups), n * groups)
        if rank:
            parts[f"{weight.name}.up"] = ("BF16", (n, rank), 2 * n * rank)
            parts[f"{weight.name}.down"] = ("BF16", (rank, k), 2 * rank * k)
        return parts

    def _json(self, widths: Options, slices: Slices | None, checks: str | None) -> str:
        tensors = self.tensors(widths)
        metadata = {
            "check": BLANK,
            "checks": BLANK * len(tensors) if checks is None else checks,
            "format": FORMAT,
            "group_size": str(self.group_size),
            "symmetric": json.dumps(self.symmetric),
            "sliced": json.dumps(self.sliced),
            "bits": _sorted_json({name: bits_of(option) for name, option in widths.items()}),
            "inputs": _sorted_json({w.name: w.shape[1] for w in self._quantized() if w.shape[1] % self.group_size}),
            "slices": json.dumps({name: json.loads(_sorted_json(s)) for name, s in (slices or {}).items()}),
            "config": self.config,
            "generation_config": self.generation,
        }
        entries: dict[str, object] = {"__metadata__": metadata}
        at = 0
        for name, (kind, shape, size) in tensors.items():
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        return json.dumps(entries, separators=(",", ":"))


def write(
    path: Path, layout: Layout, widths: Options, quantized: Callable[[str, Any], Quantized],
    rest: Mapping[str, Tensor], slices: Slices | None = None,
) -> None:  # fmt: skip
    """Write a model; the file appears whole or not at all.

    Args:
        path: The file.
        layout: Of the model.
        widths: Of every matrix that is quantized.
        quantized: Gives a matrix by its name at a width.
        rest: All other parameters by name.
        slices: Slice maps; all widths are 8 then.

    Raises:
        BackendError: there are slice maps, but some matrix is no 8-bit parent, or a map names another matrix.
    """
    for name, chosen in (slices or {}).items():
        if set(chosen) != set(widths) or set(widths.values()) != {8} or any(map(rank_of, chosen.values())):
            raise BackendError(
                f"The slice map {name!r} does not fit: it needs a width, and no repair, for each of {len(widths)} "
                "matrices, all of them stored at 8 bits."
            )
    start, checks = len(layout.header(widths, slices)), []
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for place, data in _pieces(layout, widths, quantized, rest):
            file.seek(start + place)
            file.write(data)
            checks.append((place, f"{zlib.crc32(data):08x}"))
        file.seek(0)
        file.write(layout.header(widths, slices, "".join(check for _, check in sorted(checks))))


def _pieces(
    layout: Layout, widths: Options, quantized: Callable[[str, Any], Quantized], rest: Mapping[str, Tensor]
) -> Iterator[tuple[int, bytes]]:
    """The bytes of every tensor and where they begin, each matrix made only once."""
    places, at = {}, 0
    for name, (_, _, size) in layout.tensors(widths).items():
        places[name], at = at, at + size
    for name in layout.unquantized():
        yield places[name], _bytes(rest[name].data.to(torch.bfloat16))
    for name, option in widths.items():
        matrix = quantized(name, option)
        yield places[f"{name}.scales"], _bytes(matrix.scales)
        yield places[f"{name}.codes"], _bytes(pack(matrix.codes, matrix.bits))
        if matrix.zeros is not None:
            yield places[f"{name}.zeros"], _bytes(matrix.zeros)
        if matrix.repair is not None:
            yield places[f"{name}.up"], _bytes(matrix.repair.up)
            yield places[f"{name}.down"], _bytes(matrix.repair.down)


@dataclass(frozen=True)
class Packed:
    """What a packed file holds.

    Attributes:
        matrices: The quantized matrices by name, in the layout "plain", mapped from the file.
        rest: All other parameters by name, bfloat16, mapped from the file.
        config: The model's configuration; empty if it was not stored.
        generation: How the model generates; empty if it was not stored.
        slices: The slice maps by name.
        repairs: The low-rank repairs beside matrices, by the matrix's name, mapped from the file.
    """

    matrices: dict[str, Prepacked]
    rest: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    slices: dict[str, dict[str, int]] = field(default_factory=dict)
    repairs: dict[str, Repair] = field(default_factory=dict)


def read(path: str | os.PathLike[str]) -> Packed:
    """Read a packed file, every byte of it checked.

    The tensors are mapped from the file: who writes into it in place, rather than replacing it, changes them.

    Raises:
        BackendError: it is no packed file, or is damaged; names the tensor that is.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise BackendError(f"Cannot read {path}: {error}") from error
    try:
        found, start = _header(data)
        tensors = {name: _tensor(data, start, name, place) for name, place in found.tensors.items()}
    except BackendError as error:
        raise BackendError(f"Cannot read {path}: {error}.") from error
    matrices, repairs = {}, {}
    for name, bits in found.widths.items():
        codes, scales = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales")
        zeros, shape = tensors.pop(f"{name}.zeros", None), (len(codes), found.inputs[name])
        shift = 8 - bits if found.sliced else 0
        matrices[name] = Prepacked(codes, scales, zeros, bits, found.group_size, shape, "plain", shift)
        if name in found.ranks:
            repairs[name] = Repair(tensors.pop(f"{name}.up"), tensors.pop(f"{name}.down"))
    return Packed(matrices, tensors, found.config, found.generation, found.slices, repairs)


def _header(data: mmap.mmap) -> tuple[Header, int]:
    """What the header says, and where the tensors begin."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else len(data)
    try:
        text = data[8 : 8 + size].decode().rstrip(" ")
        begins = size <= len(data) - 8 and text.startswith("{")
    except (ValueError, OverflowError):
        begins = False
    if not begins:
        raise BackendError("it does not begin with the header of a safetensors file")
    return parse(text, len(data) - 8 - size), 8 + size


def _tensor(data: mmap.mmap, start: int, name: str, place: Place) -> Tensor:
    """A tensor, checked."""
    dtype, count = TYPES[place.dtype], math.prod(place.shape)
    if f"{zlib.crc32(memoryview(data)[start + place.begin : start + place.end]):08x}" != place.check:
        raise BackendError(f"it is damaged: {name} is not what was written. Write or copy it again")
    if count == 0:
        return torch.empty(place.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + place.begin).view(place.shape)


def _sorted_json(widths: Options) -> str:
    return json.dumps({name: widths[name] for name in sorted(widths)})


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
