"""Tensors on disk that are whole or not there: safetensors with a checksum, written atomically, under a lock."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moopt.whole import whole_file

logger = logging.getLogger("moopt")


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, mapped from it; None if there is none, or it was damaged: it is removed then, and said."""
    if not path.exists():
        return None
    parts: dict[str, Tensor] = {}
    expected = None
    try:
        with safe_open(path, "pt") as file:
            parts = {part: file.get_tensor(part) for part in file.keys()}
            expected = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        pass
    if expected == str(_checksum(parts)):
        return parts
    logger.warning("%s is damaged and is made again.", path)
    path.unlink(missing_ok=True)
    return None


def write(path: Path, parts: Mapping[str, Tensor]) -> None:
    """Write tensors as a file that appears whole or not at all."""
    with whole_file(path) as temporary:
        save_file(dict(parts), temporary, {"crc32": str(_checksum(parts))})


def fetch(
    path: Path, make: Callable[[], Mapping[str, Tensor]], fits: Callable[[int], bool] = lambda size: True
) -> dict[str, Tensor]:
    """The tensors of a file, mapped from it; made and written if there is none, by one process at a time.

    Args:
        path: The file.
        make: Makes the tensors.
        fits: Whether so many bytes may be written; what may not is returned as it was made.
    """
    if (found := read(path)) is not None:
        return found
    with locked(path):
        if (found := read(path)) is not None:  # another worker made it meanwhile
            return found
        made = {part: tensor.contiguous().cpu() for part, tensor in make().items()}
        if fits(sum(tensor.nbytes for tensor in made.values())):
            write(path, made)
            found = read(path)
    return made if found is None else found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While open, no other process makes this file; what one that was killed had half written of it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent / f".{path.stem}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}-*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _checksum(parts: Mapping[str, Tensor]) -> int:
    check = 0
    for part in sorted(parts):
        check = zlib.crc32(parts[part].view(-1).view(torch.uint8).numpy().data, check)
    return check


def free(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
