"""GPTQ files, as AutoGPTQ and GPTQModel write them.

Beside each linear layer's name: `qweight` int32, codes packed along the inputs, [k * bits / 32, n]; `qzeros` int32,
packed along the outputs, [groups, n * bits / 32]; `scales` [groups, n]; and `g_idx` int32, the group of each input,
[k]. The value is scale * (code - zero). The trap: files of the format "gptq" store each zero point less one, modulo
2**bits; "gptq_v2" stores it as it is. `dynamic` of GPTQModel's settings gives modules widths of their own: of its
patterns the first that matches a module's name counts, "-:" before one leaves the module alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moopt.backend.external.contract import Stored
from moopt.backend.external.folder import Folder
from moopt.backend.external.packing import unpacked
from moopt.backend.weights import Weight

WIDTHS = (2, 3, 4, 8)


class GPTQFile(Folder):
    """The matrices of a folder with a GPTQ model.

    Args:
        name: What the option is called.
        path: The folder.
        files: The safetensors files in it.
        settings: What `quantization_config` or `quantize_config.json` says.
    """

    def __init__(self, name: str, path: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
        super().__init__(name, path, files)
        bits = settings.get("bits")
        if bits not in WIDTHS:
            raise self.refused(f"its bits are {bits!r}; expected one of {', '.join(map(str, WIDTHS))}")
        self._bits, own = int(bits), settings.get("dynamic") or {}
        try:
            patterns = [re.compile(re.sub(r"^[+-]:", "", pattern)) for pattern in own]
            self._own = list(zip(patterns, [dict(each) for each in own.values()], strict=True))
        except (re.error, TypeError, AttributeError, ValueError) as error:
            raise self.refused(f"its dynamic is {own!r}; expected settings by pattern ({error})") from error
        written = settings.get("checkpoint_format", "gptq")
        if written not in ("gptq", "gptq_v2"):
            raise self.refused(f"its checkpoint_format is {written!r}; expected 'gptq' or 'gptq_v2'")
        self._less = int(written == "gptq")
        self._group_size = self._size(settings.get("group_size", -1))

    def stored(self, weight: Weight) -> Stored | None:
        if (found := self._matrix(weight, "qweight")) is None:
            return None
        (words, n), bits = found, self._width(weight)
        return Stored((n, words * 32 // bits), bits, self._bytes[weight.name])

    def read(self, weight: Weight) -> Tensor:
        bits, scales = self._width(weight), self._part(weight, "scales").float()
        codes, zeros = self._codes(weight, "qweight", bits), self._codes(weight, "qzeros", bits).int()
        if zeros.shape != scales.shape or codes.shape[1] != scales.shape[1]:
            raise self.refused(f"{weight.name} has zero points {tuple(zeros.shape)} and scales {tuple(scales.shape)}")
        zeros = (zeros + self._less) % 2**bits
        group = self._groups(weight, len(codes), len(scales))
        values: Tensor = (codes.int() - zeros[group]) * scales[group]
        return values.T.contiguous()

    def _codes(self, weight: Weight, part: str, bits: int) -> Tensor:
        """The codes of "qweight", [k, n], or the zero points as they are stored in "qzeros", [groups, n]."""
        words = self._part(weight, part)
        return unpacked(words, bits) if part == "qweight" else unpacked(words.T.contiguous(), bits).T

    def _own_settings(self, weight: Weight) -> Mapping[str, Any]:
        """What a matrix has for itself."""
        return next((own for pattern, own in self._own if pattern.match(weight.name)), {})

    def _width(self, weight: Weight) -> int:
        """The width of a matrix's codes."""
        bits = self._own_settings(weight).get("bits", self._bits)
        if bits not in WIDTHS:
            raise self.refused(f"{weight.name} has {bits!r} bits; expected one of {', '.join(map(str, WIDTHS))}")
        return int(bits)

    def _size(self, size: object) -> int:
        """A group's size, -1 for whole rows."""
        if type(size) is not int or size < -1 or size == 0:
            raise self.refused(f"its group_size is {size!r}; expected a whole number above 0, or -1 for whole rows")
        return size

    def _groups(self, weight: Weight, k: int, groups: int) -> Tensor:
        """The group of each input, [k]."""
        size = self._size(self._own_settings(weight).get("group_size", self._group_size))
        given = self._tensors.get(f"{weight.name}.g_idx")
        inputs = torch.arange(k) // (size if size > 0 else k)
        return self._inside(weight, inputs if given is None else given.long(), k, groups)
