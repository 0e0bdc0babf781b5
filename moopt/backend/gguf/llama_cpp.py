"""llama.cpp's own library, prebuilt: it encodes types, and runs files as their users will (see `running`)."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moopt.errors import QuantizationError

PACKAGES = {"xllamacpp": ("xllamacpp*.so", "xllamacpp*.pyd"), "llama_cpp": ("lib/libllama.*", "lib/llama.dll")}
"""Packages that carry the library, and what it is called in them."""


def encoded(kind: int, matrix: npt.NDArray[np.float32], row_bytes: int) -> npt.NDArray[np.uint8]:
    """A matrix in a type.

    Args:
        kind: The code of the type.
        matrix: n x k, k a multiple of the type's block.
        row_bytes: What a row takes.

    Returns:
        n x row_bytes.

    Raises:
        QuantizationError: there is no library.
    """
    source = np.ascontiguousarray(matrix, dtype=np.float32)
    found = np.empty((len(source), row_bytes), np.uint8)
    written = library().ggml_quantize_chunk(
        kind, source.ctypes.data, found.ctypes.data, 0, len(source), source.shape[1], None
    )
    assert written == found.nbytes, f"{written} bytes were written; {found.nbytes} were expected"
    return found


@cache
def library() -> ctypes.CDLL:
    """The library.

    Raises:
        QuantizationError: none is installed that can be loaded here; says what to install.
    """
    failed = ""
    for file in _files():
        try:
            loaded = ctypes.CDLL(str(file))
            _declare(loaded)
        except (OSError, AttributeError) as error:  # for another system, or without what is needed
            failed = f" ({error})"
            continue
        return loaded
    raise QuantizationError(
        f"This needs llama.cpp's library, which was not found{failed}; run: pip install xllamacpp. Without it GGUF "
        "files can have q4_0, q4_1, q5_0, q5_1 and q8_0, and are not run here."
    )


def _files() -> Iterator[Path]:
    """Where the library may be."""
    for package, patterns in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for pattern in patterns:
                yield from sorted(Path(spec.origin).parent.glob(pattern))


def _declare(loaded: ctypes.CDLL) -> None:
    """What the functions take and give."""
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
