"""Files that appear whole or not at all, in the place of what was there. Knows nothing of what they mean."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from moopt.errors import StorageError


def replaced(path: Path, content: bytes) -> Path:
    """Write beside `path` under a temporary name, then rename: nobody ever sees half a file.

    What a link points to is replaced, and what is no file, such as a pipe or a device, is written into.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file() and not place.is_dir():
            place.write_bytes(content)
            return path
        place.parent.mkdir(parents=True, exist_ok=True)
        _renamed(place, content)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Give another path.") from error
    return path


def _renamed(place: Path, content: bytes) -> None:
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    temporary = place.parent / f".{place.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, place)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
