"""GGUF files: matrices of any type that the package `gguf` can dequantize."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moopt.backend.external import gguf_header
from moopt.backend.external.contract import External, Stored
from moopt.backend.gguf import package
from moopt.backend.gguf.names import ARCHITECTURES, Names
from moopt.backend.weights import Weight

UNQUANTIZED = ("F32", "F16", "BF16", "F64")


class GGUFFile(External):
    """The matrices of a GGUF file.

    Args:
        name: What the option is called.
        path: The file.
        config: The configuration of the model that they are to stand in.
    """

    def __init__(self, name: str, path: Path, config: Any) -> None:
        super().__init__(name, path, (path,))
        gguf = package()
        expected = ARCHITECTURES.get(config.model_type)
        if expected is None:
            raise self.refused(f"the model is a {config.model_type}; expected one of {', '.join(ARCHITECTURES)}")
        try:
            header = gguf_header.read(path)
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise self.refused(f"it is no GGUF file: {error}") from error
        if header.architecture != expected:
            raise self.refused(f"it holds a model of the architecture {header.architecture!r}; expected {expected!r}")
        known = {int(kind) for kind in gguf.GGMLQuantizationType}
        self._places = {name: place for name, place in header.tensors.items() if place.kind in known}
        self._names = Names(config)

    def stored(self, weight: Weight) -> Stored | None:
        name = self._named(f"{weight.name}.weight")
        if name is None or self._kind(name).name in UNQUANTIZED:
            return None
        n, k = self._places[name].shape
        bits = re.search(r"\d+", self._kind(name).name)  # Q4_K: 4, IQ3_XXS: 3
        assert bits is not None
        return Stored((n, k), int(bits[0]), self._bytes(name))

    def read(self, weight: Weight) -> Tensor:
        name = self._named(f"{weight.name}.weight")
        assert name is not None
        return self._names.restored(name, self._dequantized(name))

    def plain(self, parameter: str) -> Tensor | None:
        name = self._named(parameter)
        return None if name is None or self._kind(name).name not in UNQUANTIZED else self._dequantized(name)

    def _named(self, parameter: str) -> str | None:
        """The name of the tensor of a parameter of the model, if it is there."""
        found = self._names.of(parameter)
        return found if found in self._places else None

    def _kind(self, name: str) -> Any:
        return package().GGMLQuantizationType(self._places[name].kind)

    def _bytes(self, name: str) -> int:
        block, size = package().GGML_QUANT_SIZES[self._kind(name)]
        return math.prod(self._places[name].shape) // int(block) * int(size)

    def _dequantized(self, name: str) -> Tensor:
        from gguf import quants

        place, size = self._places[name], self._bytes(name)
        if place.begin + size > self.path.stat().st_size:
            raise self.refused(f"it ends before {name} does; copy it again")
        rows = math.prod(place.shape[:-1])
        raw = np.memmap(self.path, np.uint8, "r", place.begin, (rows, size // rows))
        try:
            values = np.array(quants.dequantize(raw, self._kind(name)), dtype=np.float32)
        except NotImplementedError as error:
            kind = self._kind(name).name
            raise self.refused(f"{name} is of type {kind}, which the package gguf cannot read") from error
        return torch.from_numpy(values.reshape(place.shape))
