"""Matrices that somebody else's tool quantized, as options: GPTQ, AutoRound, compressed-tensors and GGUF files.

Each matrix is read by itself, dequantized, and kept in the variant store like moopt's own; its bytes are those it takes
in the file. What a file is, the configuration beside it or its ending says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moopt.backend.external.autoround import AutoRoundFile
from moopt.backend.external.compressed import CompressedTensors
from moopt.backend.external.contract import External
from moopt.backend.external.gguf import GGUFFile
from moopt.backend.external.gptq import GPTQFile
from moopt.errors import QuantizationError

__all__ = ["AutoRoundFile", "CompressedTensors", "External", "GGUFFile", "GPTQFile", "opened"]

METHODS: dict[str, Callable[[str, Path, Sequence[Path], Mapping[str, Any]], External]] = {
    "gptq": GPTQFile,
    "auto-round": AutoRoundFile,
    "compressed-tensors": CompressedTensors,
}


def opened(name: str, where: str, config: Any) -> External:
    """An external option.

    Args:
        name: What it is to be called.
        where: A GGUF file, a folder with the safetensors files of a quantized model and its configuration, or one
            safetensors file in such a folder.
        config: The configuration of the model that its matrices are to stand in.

    Raises:
        QuantizationError: there is nothing there that can be read; says what was expected.
    """
    path = Path(where).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return GGUFFile(name, path, config)
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".safetensors" else []
    if not files or not all(file.is_file() for file in files):
        raise QuantizationError(
            f"Cannot use {where!r} as {name!r}; expected a .gguf file, a .safetensors file or a folder with some."
        )
    settings = _settings(folder)
    method = settings.get("quant_method", "gptq" if "bits" in settings else None)
    if not isinstance(method, str) or method not in METHODS:
        raise QuantizationError(
            f"Cannot use {where!r} as {name!r}: the quantization method in its config.json is {method!r}; expected one "
            f"of {', '.join(METHODS)}."
        )
    return METHODS[method](name, path, files, settings)


def _settings(folder: Path) -> dict[str, Any]:
    """How a folder's model was quantized: of its configuration, else as AutoGPTQ wrote it."""
    for file, within in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        try:
            found = json.loads((folder / file).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise QuantizationError(f"{folder / file} cannot be read: {error}.") from error
        settings = found.get(within) if within is not None and isinstance(found, dict) else found
        if isinstance(settings, dict):
            return settings
    return {}
