"""AutoRound's own files: GPTQ's tensors or AWQ's, with settings for each module where AutoScheme chose widths.

`packing_format` says which, and how zero points are stored: "auto_round:auto_gptq" (symmetric) less one, as in GPTQ's
first format; "auto_round" (asymmetric) as they are; "auto_round:auto_awq" (asymmetric, 4 bits) as they are, codes and
zero points packed along the outputs, eight in a word by `ORDER`. `extra_config` gives modules settings of their own, by
name or pattern; those of 16 bits are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moopt.backend.external.contract import Stored
from moopt.backend.external.gptq import GPTQFile
from moopt.backend.external.packing import unpacked
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError

AWQ = "auto_round:auto_awq"
PACKINGS = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2", AWQ: "gptq_v2"}
"""How zero points are stored, in GPTQ's terms."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which output each four bits of a word of AWQ's belong to, from the lowest."""


class AutoRoundFile(GPTQFile):
    """The matrices of a folder with a model of AutoRound's.

    Args:
        name: What the option is called.
        path: The folder.
        files: The safetensors files in it.
        settings: What `quantization_config` says.

    Raises:
        QuantizationError: it is packed in a way that is not read; says which are.
    """

    def __init__(self, name: str, path: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
        packing, own = settings.get("packing_format", "auto_round:auto_gptq"), settings.get("extra_config") or {}
        if packing not in PACKINGS or not isinstance(own, Mapping):
            raise QuantizationError(
                f"Cannot use {str(path)!r} as {name!r}: it is packed as {packing!r} with extra_config of type "
                f"{type(own).__name__}; expected {', '.join(PACKINGS)}, and settings by module. Export it in "
                "AutoRound with format='auto_gptq'."
            )
        modules = {_pattern(module): each for module, each in own.items()}
        super().__init__(name, path, files, {**settings, "checkpoint_format": PACKINGS[packing], "dynamic": modules})
        self._awq = packing == AWQ

    def stored(self, weight: Weight) -> Stored | None:
        found = super().stored(weight)
        if not self._awq or found is None:
            return found
        if found.bits != 4:
            raise self.refused(f"{weight.name} has {found.bits} bits, packed as {AWQ!r}; expected 4")
        words, codes = found.shape  # of one packed along the inputs: eight codes in a word, the other way round
        return Stored((8 * words, codes // 8), 4, found.bytes)

    def _codes(self, weight: Weight, part: str, bits: int) -> Tensor:
        if not self._awq:
            return super()._codes(weight, part, bits)
        words = self._part(weight, part)
        codes = unpacked(words.T.contiguous(), 4).view(-1, 8, len(words))  # [n / 8, 8, rows]
        return codes[:, torch.tensor(ORDER).argsort()].reshape(-1, len(words)).T.contiguous()


def _pattern(module: str) -> str:
    """What matches the modules that a key of `extra_config` stands for: one by its name, or a pattern of its own."""
    return module if set(module) & set("\\*+?[](){}|^$") else f"{re.escape(module)}$"
