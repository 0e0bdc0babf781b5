"""compressed-tensors files of the format "pack-quantized", as llm-compressor writes them for weights of 4 or 8 bits.

Beside each linear layer's name: `weight_packed` int32, signed codes plus 2**(bits - 1), packed along the inputs,
[n, k * bits / 32] rounded up; `weight_scale` [n, groups]; `weight_shape`, n and k; where there are zero points
`weight_zero_point`, signed int8 [n, groups], or packed along the outputs in int32; with activation ordering
`weight_g_idx`, the group of each input. The value is scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moopt.backend.external.contract import Stored
from moopt.backend.external.folder import Folder
from moopt.backend.external.packing import unpacked
from moopt.backend.weights import Weight


class CompressedTensors(Folder):
    """The matrices of a folder with a compressed-tensors model.

    Args:
        name: What the option is called.
        path: The folder.
        files: The safetensors files in it.
        settings: What `quantization_config` says.
    """

    def __init__(self, name: str, path: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
        super().__init__(name, path, files)
        written = settings.get("format")
        if written != "pack-quantized":
            raise self.refused(f"its format is {written!r}; expected 'pack-quantized'")

    def stored(self, weight: Weight) -> Stored | None:
        if (found := self._matrix(weight, "weight_packed")) is None:
            return None
        n, words = found
        k = weight.shape[1]
        bits = next((bits for bits in (4, 8) if -(-k * bits // 32) == words), None)
        if bits is None:
            raise self.refused(f"{weight.name} has {words} words a row; expected {k} inputs at 4 or 8 bits")
        return Stored((n, k), bits, self._bytes[weight.name])

    def read(self, weight: Weight) -> Tensor:
        (n, k), bits = weight.shape, self.bits(weight)
        packed, scales = self._part(weight, "weight_packed"), self._part(weight, "weight_scale").float()
        shape = tuple(self._part(weight, "weight_shape").tolist())
        if shape != (n, k) or scales.ndim != 2 or len(scales) != n:
            raise self.refused(f"{weight.name} has the shape {shape} and scales {tuple(scales.shape)} there")
        codes = unpacked(packed.T.contiguous(), bits)[:k].T.int() - 2 ** (bits - 1)
        zeros = self._zeros(weight, bits, n)
        if zeros is not None and zeros.shape != scales.shape:
            raise self.refused(f"{weight.name} has zero points {tuple(zeros.shape)} and scales {tuple(scales.shape)}")
        group = self._groups(weight, k, scales.shape[1])
        values: Tensor = (codes if zeros is None else codes - zeros[:, group]) * scales[:, group]
        return values

    def _zeros(self, weight: Weight, bits: int, n: int) -> Tensor | None:
        """Zero points [n, groups], int32."""
        given = self._tensors.get(f"{weight.name}.weight_zero_point")
        if given is not None and given.dtype == torch.int32:
            given = unpacked(given, bits)[:n].int() - 2 ** (bits - 1)
        return None if given is None else given.int()

    def _groups(self, weight: Weight, k: int, groups: int) -> Tensor:
        """The group of each input, [k]."""
        given = self._tensors.get(f"{weight.name}.weight_g_idx")
        if given is not None and (given >= 0).all():
            return self._inside(weight, given.long(), k, groups)
        if not groups or k % groups:
            raise self.refused(f"{weight.name} has {k} inputs and {groups} scales a row")
        return torch.arange(k) // (k // groups)
