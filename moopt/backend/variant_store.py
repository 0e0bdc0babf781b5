"""Matrices as they run, on disk: made once, read by memory map, one copy in memory for all workers of a machine.

One safetensors file a matrix and variant: <cache>/variants/<model>/<kind>/<matrix>/<width>.safetensors, where the kind
names the quantizer. It is written to a temporary name, synced and renamed; it carries a checksum; a lock per file
keeps two workers from making the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from moopt.backend import cache, checked

logger = logging.getLogger("moopt")

SHARE_OF_DISK = 0.25
"""Of what is free where the cache is, what the variants made in one process may take."""


class VariantStore:
    """The matrices of one model.

    Args:
        model: What identifies the model's weights.
    """

    def __init__(self, model: str) -> None:
        self._folder = cache.folder() / "variants" / model
        self._room = SHARE_OF_DISK * checked.free(self._folder)

    def fetch(self, kind: str, name: str, width: str, make: Callable[[], Tensor]) -> Tensor:
        """A matrix, made and stored if it is missing: see `fetch_parts`."""
        return self.fetch_parts(kind, name, width, lambda: {"weight": make()})["weight"]

    def fetch_parts(self, kind: str, name: str, width: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a matrix, made and stored if they are missing.

        The result is mapped from the file and must not be written to. Where there is no room to store it, it is what
        `make` returned.

        Args:
            kind: How it is made: "original", or the quantizer with all its settings.
            name: The matrix.
            width: Its bits and the type or layout it is stored in.
            make: Makes it.
        """
        return checked.fetch(self._path(kind, name, width), make, self._fits)

    def has(self, kind: str, name: str, width: str) -> bool:
        """Whether it is stored, so that it takes no memory of this process alone."""
        return self._path(kind, name, width).exists()

    def _fits(self, size: int) -> bool:
        """Take so many bytes of the room, if there are."""
        if size > self._room:
            logger.debug("There is no room to store %d bytes.", size)
            return False
        self._room -= size
        return True

    def _path(self, kind: str, name: str, width: str) -> Path:
        return self._folder / kind / name / f"{width}.safetensors"
