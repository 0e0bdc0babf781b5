"""moopt's packed file: one safetensors file, and exactly how many bytes it takes before it is written.

Every quantized matrix is three tensors, `<name>.codes` (packed bytes), `<name>.scales` (bfloat16) and, if asymmetric,
`<name>.zeros` (uint8); everything else stays as it is named, in bfloat16. The header is padded to the length it has
at 8 bits everywhere, so that the size of a file is a sum over its matrices.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moopt.backend import cache
from moopt.backend.candidate import Candidate, Widths
from moopt.backend.quantizers import Quantized
from moopt.backend.weights import Inventory, Weight
from moopt.errors import BackendError
from moopt_kernels import pack, packed_columns, unpack

FORMAT = "moopt-packed-1"


@dataclass(frozen=True)
class Layout:
    """How a model is stored: decides every byte but the widths'.

    Attributes:
        inventory: The model's matrices and the rest.
        group_size: How many inputs share a scale.
        symmetric: Whether zero points are left out.
        plain: Names of matrices that stay at 16 bits.
    """

    inventory: Inventory
    group_size: int
    symmetric: bool
    plain: frozenset[str] = frozenset()

    def matrix_bytes(self, weight: Weight, bits: int) -> int:
        """What one matrix takes at a width."""
        return sum(size for _, _, size in self._parts(weight, bits).values())

    def fixed_bytes(self) -> int:
        """What every file of the model takes: the header and all that stays at 16 bits."""
        widest = {w.name: 8 for w in self.inventory.weights if w.name not in self.plain}
        return len(self.header(widest)) + sum(s for _, _, s in self._plain_parts().values())

    def total_bytes(self, widths: Widths) -> int:
        """What the file takes."""
        return self.fixed_bytes() + sum(self.matrix_bytes(w, widths[w.name]) for w in self._quantized())

    def header(self, widths: Widths) -> bytes:
        """The first bytes of the file: its length and the JSON that names every tensor, padded with spaces."""
        text = self._json(widths)
        full = len(self._json({name: 8 for name in widths}))
        padded = -(-full // 8) * 8
        return struct.pack("<Q", padded) + text.ljust(padded)

    def tensors(self, widths: Widths) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """Type, shape and bytes of every tensor by name, in the order of the file."""
        parts = self._plain_parts()
        for weight in self._quantized():
            parts |= self._parts(weight, widths[weight.name])
        return parts

    def _quantized(self) -> Iterator[Weight]:
        return (w for w in self.inventory.weights if w.name not in self.plain)

    def _plain_parts(self) -> dict[str, tuple[str, tuple[int, ...], int]]:
        shapes = {f"{w.name}.weight": w.shape for w in self.inventory.weights if w.name in self.plain}
        shapes |= self.inventory.rest  # type: ignore[arg-type]
        return {name: ("BF16", shape, 2 * int(torch.Size(shape).numel())) for name, shape in shapes.items()}

    def _parts(self, weight: Weight, bits: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
        n, k = weight.shape
        groups = k // self.group_size
        columns = packed_columns(k, bits)
        parts: dict[str, tuple[str, tuple[int, ...], int]] = {
            f"{weight.name}.codes": ("U8", (n, columns), n * columns),
            f"{weight.name}.scales": ("BF16", (n, groups), 2 * n * groups),
        }
        if not self.symmetric:
            parts[f"{weight.name}.zeros"] = ("U8", (n, groups), n * groups)
        return parts

    def _json(self, widths: Widths) -> bytes:
        bits = {name: widths[name] for name in sorted(widths)}
        metadata = {"format": FORMAT, "group_size": str(self.group_size), "bits": json.dumps(bits)}
        entries: dict[str, object] = {"__metadata__": metadata}
        at = 0
        for name, (kind, shape, size) in self.tensors(widths).items():
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        return json.dumps(entries, separators=(",", ":")).encode()


def write(path: Path, layout: Layout, candidate: Candidate, widths: Widths) -> None:
    """Write a candidate; the file appears whole or not at all."""
    rest = dict(candidate.model.named_parameters())
    with cache.whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(layout.header(widths))
        for name in layout.tensors(widths):
            owner, _, part = name.rpartition(".")
            if owner not in widths:
                file.write(_bytes(rest[name].data.to(torch.bfloat16)))
            elif part == "codes":
                quantized = candidate.quantized(owner, widths[owner])
                file.write(_bytes(pack(quantized.codes, quantized.bits)))
            elif part == "scales":
                file.write(_bytes(quantized.scales))
            else:
                assert quantized.zeros is not None
                file.write(_bytes(quantized.zeros))


def read(path: Path) -> tuple[dict[str, Quantized], dict[str, Tensor]]:
    """The quantized matrices and everything else of a packed file, by name.

    Raises:
        BackendError: it is no packed file, or is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BackendError(f"{path} is not a packed file of moopt's; expected the format {FORMAT}.")
            widths: dict[str, int] = json.loads(metadata["bits"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise BackendError(f"Cannot read {path}: {error}") from error
    group_size, quantized = int(metadata["group_size"]), {}
    for name, bits in widths.items():
        scales = tensors.pop(f"{name}.scales")
        codes = unpack(tensors.pop(f"{name}.codes"), bits, scales.shape[1] * group_size)
        quantized[name] = Quantized(codes, scales, tensors.pop(f"{name}.zeros", None), bits)
    return quantized, tensors


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()
