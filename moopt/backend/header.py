"""The header of a packed file, parsed and checked: whatever does not fit is a BackendError that says what came.

Knows nothing of weights: `moopt.backend.packed` writes files and reads their tensors.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moopt.errors import BackendError
from moopt_kernels import packed_columns

FORMAT = "moopt-packed-3"
BLANK = "0" * 8
"""The place of a checksum: CRC-32 in hexadecimal."""
TYPES = {"BF16": torch.bfloat16, "U8": torch.uint8}
METADATA = (
    "check", "checks", "format", "group_size", "symmetric", "sliced", "bits", "inputs", "slices", "config",
    "generation_config",
)  # fmt: skip
"""What the header says beside where the tensors are, all of it text."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        dtype: "BF16" or "U8".
        shape: Of the tensor.
        begin: Its first byte, counted from the header's end.
        end: The byte after its last one.
        check: Its CRC-32 in hexadecimal.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    check: str


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
        tensors: Where every tensor is, by name, in the order of the file.
        widths: Of every quantized matrix.
        inputs: Columns k of every quantized matrix.
        group_size: How many inputs share a scale; the last group of a row may be shorter.
        symmetric: Whether there are no zero points.
        sliced: Whether matrices of fewer than 8 bits are slices of 8-bit parents, whose scales and zeros they have.
        slices: Slice maps by name.
        ranks: Of the repairs beside matrices, where there are any.
        config: The model's configuration; empty if it was not stored.
        generation: How the model generates; empty if it was not stored.
    """

    tensors: dict[str, Place]
    widths: dict[str, int]
    inputs: dict[str, int]
    group_size: int
    symmetric: bool
    sliced: bool
    slices: dict[str, dict[str, int]]
    ranks: dict[str, int]
    config: dict[str, Any]
    generation: dict[str, Any]


def parse(text: str, room: int) -> Header:
    """Check a header and take it apart.

    Args:
        text: The JSON, without the spaces behind it.
        room: Bytes of the file behind the header.

    Raises:
        BackendError: it is not what `moopt.backend.packed` writes; says what is wrong.
    """
    entries = _object(text, "the header")
    metadata = entries.pop("__metadata__", {})
    found = metadata.get("format", "none") if isinstance(metadata, dict) else "none"
    if found != FORMAT:
        raise BackendError(f"it is not a packed file of this moopt: its format is {found}, expected {FORMAT}")
    for key in METADATA:
        _expect(isinstance(metadata.get(key), str), f"{key} is missing or is no text")
    if checksum(text.replace(metadata["check"], BLANK, 1)) != metadata["check"]:
        raise BackendError("it is damaged: its header is not what was written. Write or copy it again")
    widths = _widths(_object(metadata["bits"], "bits"), "bits", range(1, 9))
    size = metadata["group_size"]
    _expect(size.isascii() and size.isdigit() and len(size) < 10 and int(size) > 0, f"group_size is {size!r}")
    symmetric, sliced = _switch(metadata, "symmetric"), _switch(metadata, "sliced")
    tensors = _places(entries, metadata["checks"], room)
    given = _widths(_object(metadata["inputs"], "inputs"), "inputs", range(1, 1 << 48))
    _expect({*given} <= {*widths}, "inputs names what is no quantized matrix")
    inputs = {name: _inputs(tensors, name, bits, int(size), symmetric, given) for name, bits in widths.items()}
    ranks = {name: rank for name in widths if (rank := _rank(tensors, name, inputs[name]))}
    slices = {name: _slice_map(name, s, widths) for name, s in _object(metadata["slices"], "slices").items()}
    config = _object(metadata["config"] or "{}", "config")
    generation = _object(metadata["generation_config"] or "{}", "generation_config")
    return Header(tensors, widths, inputs, int(size), symmetric, sliced, slices, ranks, config, generation)


def checksum(text: str) -> str:
    """CRC-32 in hexadecimal."""
    return f"{zlib.crc32(text.encode()):08x}"


def _places(entries: Mapping[str, Any], checks: str, room: int) -> dict[str, Place]:
    """Where the tensors are: one behind the other, from the header to the end of the file."""
    _expect(len(checks) == len(BLANK) * len(entries), f"it has {len(entries)} tensors and not as many checksums")
    places, end = {}, 0
    for number, (name, entry) in enumerate(entries.items()):
        _expect(isinstance(entry, dict) and {*entry} == {"dtype", "shape", "data_offsets"}, f"{name} has no place")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        _expect(isinstance(dtype, str) and dtype in TYPES, f"{name} is of type {dtype!r}, expected BF16 or U8")
        possible = _whole(shape) and len(shape) < 9 and math.prod(max(d, 1) for d in shape) < 1 << 48
        _expect(possible, f"{name} has the shape {shape!r}")
        size = math.prod(shape) * TYPES[dtype].itemsize
        _expect(
            _whole(offsets) and offsets == [end, end + size],
            f"{name} is said to be at {offsets!r}, expected {[end, end + size]} for a {dtype} of shape {shape}",
        )
        check = checks[len(BLANK) * number : len(BLANK) * (number + 1)]
        places[name] = Place(dtype, tuple(shape), end, end + size, check)
        end += size
    if end != room:
        raise BackendError(f"it is damaged: its tensors take {end} bytes, and there are {room}. Write or copy it again")
    return places


def _inputs(
    tensors: Mapping[str, Place], name: str, bits: int, group_size: int, symmetric: bool, given: Mapping[str, int]
) -> int:
    """The columns of a matrix, all parts of which are there and fit."""
    parts = {part: tensors.get(f"{name}.{part}") for part in ("codes", "scales", "zeros")}
    for part, place in parts.items():
        wanted = part != "zeros" or not symmetric
        _expect((place is not None) == wanted, f"{name}.{part} is {'missing' if wanted else 'there, but not needed'}")
    scales = parts["scales"]
    assert scales is not None
    _expect(len(scales.shape) == 2, f"{name}.scales has the shape {list(scales.shape)}, expected [n, groups]")
    n, groups = scales.shape
    k = given.get(name, groups * group_size)
    _expect(-(-k // group_size) == groups, f"{name} has {k} inputs and {groups} groups of {group_size}")
    expected = {"codes": ("U8", (n, packed_columns(k, bits))), "scales": ("BF16", (n, groups))}
    for part, place in parts.items():
        dtype, shape = expected.get(part, ("U8", (n, groups)))
        if place is not None:
            _expect(
                (place.dtype, place.shape) == (dtype, shape),
                f"{name}.{part} is {place.dtype} {list(place.shape)}, expected {dtype} {list(shape)} at {bits} bits",
            )
    return k


def _rank(tensors: Mapping[str, Place], name: str, k: int) -> int:
    """The rank of the repair beside a matrix, both parts of which are there and fit; 0 for none."""
    up, down = tensors.get(f"{name}.up"), tensors.get(f"{name}.down")
    if up is None and down is None:
        return 0
    _expect(up is not None and down is not None, f"{name} has half a repair")
    assert up is not None
    assert down is not None
    n, rank = tensors[f"{name}.scales"].shape[0], down.shape[0] if down.shape else 0
    fits = (up.dtype, up.shape, down.dtype, down.shape) == ("BF16", (n, rank), "BF16", (rank, k))
    _expect(fits and rank > 0, f"{name} has a repair of {list(up.shape)} by {list(down.shape)}, expected {n} by {k}")
    return rank


def _slice_map(name: str, found: Any, widths: Mapping[str, int]) -> dict[str, int]:
    _expect(name != "", "a slice map has no name")
    chosen = _widths(found, f"the slice map {name!r}", range(2, 9))
    _expect(
        {*chosen} == {*widths} and {*widths.values()} == {8},
        f"the slice map {name!r} needs a width for each of {len(widths)} matrices, all of them stored at 8 bits",
    )
    return chosen


def _widths(found: Any, what: str, among: range) -> dict[str, int]:
    _expect(isinstance(found, dict), f"{what} is no object")
    for name, value in found.items():
        _expect(type(value) is int and value in among, f"{what} of {name!r} is {value!r}")
    return dict(found)


def _switch(metadata: Mapping[str, Any], name: str) -> bool:
    _expect(metadata[name] in ("true", "false"), f"{name} is {metadata[name]!r}")
    return bool(metadata[name] == "true")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{what} is no JSON: {error}") from error
    _expect(isinstance(found, dict), f"{what} is no JSON object")
    return dict(found)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BackendError(f"its header is not one that moopt writes: {otherwise}")
