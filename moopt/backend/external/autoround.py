"""AutoRound's own files: GPTQ's tensors, with settings for each module where AutoScheme chose widths.

`packing_format` says how zero points are stored: "auto_round:auto_gptq" (symmetric) less one, as in GPTQ's first
format, "auto_round" (asymmetric) as they are. `extra_config` gives modules settings of their own, by name or pattern;
those of 16 bits are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moopt.backend.external.gptq import GPTQFile
from moopt.errors import QuantizationError

PACKINGS = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2"}


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
                f"{type(own).__name__}; expected {' or '.join(PACKINGS)}, and settings by module. Export it in "
                "AutoRound with format='auto_round' or 'auto_gptq'."
            )
        modules = {_pattern(module): each for module, each in own.items()}
        super().__init__(name, path, files, {**settings, "checkpoint_format": PACKINGS[packing], "dynamic": modules})


def _pattern(module: str) -> str:
    """What matches the modules that a key of `extra_config` stands for: one by its name, or a pattern of its own."""
    return module if set(module) & set("\\*+?[](){}|^$") else f"{re.escape(module)}$"
