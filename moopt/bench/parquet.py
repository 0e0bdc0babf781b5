"""One Parquet file that several processes add to: changed under a lock, whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from moopt.errors import StorageError


def read(path: Path, columns: Collection[str], what: str) -> pd.DataFrame:
    """The rows of a file; none if there is no file.

    Args:
        path: The file.
        columns: What it must have.
        what: What its rows are, for the error.

    Raises:
        StorageError: it is no such file.
    """
    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        return pd.DataFrame(columns=list(columns))
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} holds no {what} ({error}); delete it to begin anew.") from None
    if lacking := [name for name in columns if name not in rows]:
        raise StorageError(f"{path} holds no {what} (it lacks {', '.join(lacking)}); delete it to begin anew.")
    return rows


def update(path: Path, change: Callable[[], pd.DataFrame]) -> None:
    """Write what `change` gives, which may read the file: nobody else changes it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        change().to_parquet(temporary, index=False, compression="zstd", compression_level=15)
        temporary.replace(path)
