"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from moopt.errors import MooptError


@contextlib.contextmanager
def whole_folder(path: Path, own: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    It is locked meanwhile: temporary folders of `path` without a lock are of processes that were killed, and removed.

    Args:
        path: The folder; its parents are made, and vanish with it.
        own: Whether it has to be this one; else one that another process made meanwhile is as good.

    Raises:
        OSError: it cannot be written, or has to be this one and there is another.
    """
    with _parents(path):
        named = re.compile(re.escape(f".{path.name}-") + r"[a-z0-9_]{8}")
        for left in [p for p in path.parent.iterdir() if named.fullmatch(p.name) and p.is_dir()]:
            _remove_unlocked(left)
        around, lock = _locked_folder(path)
        try:
            temporary = around / path.name
            temporary.mkdir()  # whom it is open to is the user's setting; `around` is open to nobody else
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            try:
                temporary.rename(path)
            except OSError:
                if own or not path.is_dir():
                    raise
        finally:
            shutil.rmtree(around, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders that a path is in; those that were made and are empty at the end are removed."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # there is something in it
                parent.rmdir()


@contextlib.contextmanager
def new_folder(path: Path, refused: type[MooptError]) -> Iterator[Path]:
    """A `whole_folder` that has to be this one; what keeps it from being written is said as an error of that kind."""
    try:
        with whole_folder(path, own=True) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise refused(f"{path} cannot be written: {why}.") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` when the block ends well, and vanishes when it does not.

    It is locked meanwhile: temporary files of `path` without a lock are of processes that were killed, and removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    named = re.compile(re.escape(f".{path.name}-") + r"[0-9a-f]{8}\.part")
    for left in [p for p in path.parent.iterdir() if named.fullmatch(p.name)]:
        _remove_unlocked(left)
    temporary, lock = _locked_file(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def _locked_file(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open to whom the user's settings say, and the descriptor that locks it."""
    while True:
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)  # another process took it for one that was left, before it was locked


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder beside `path`, open to nobody else, and the descriptor that locks it."""
    while True:
        around = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        lock = os.open(around, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if around.exists():
            return around, lock
        os.close(lock)  # another process took it for one that was left, before it was locked


def _remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):  # locked, or gone meanwhile
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        finally:
            os.close(handle)
