"""GGUF, the files of llama.cpp: its types as options, its names, and whole files of exactly the bytes promised.

The layout is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf`, an extra,
reads and writes its parts; llama.cpp's own library encodes the types that it does not.
"""

from __future__ import annotations

from typing import Any

from moopt.errors import QuantizationError


def package() -> Any:
    """The package `gguf`.

    Raises:
        QuantizationError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise QuantizationError("GGUF files need another package; run: pip install gguf") from error
    return gguf
