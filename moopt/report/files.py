"""Files that appear whole or not at all, in the place of what was there. Knows nothing of what they mean."""

from __future__ import annotations

import os
from pathlib import Path

from moopt.errors import StorageError


def replaced(path: Path, content: bytes) -> Path:
    """Write beside `path` under a temporary name, then rename: nobody ever sees half a file.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Give another path.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
