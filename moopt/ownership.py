"""The right to write beside a file: held by one process, and given up by the system when that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from weakref import WeakSet

from moopt.errors import StorageError, StorageInUse

GLANCE = 0.05
"""Seconds after which a lock is tried for again: a watcher that looks at it holds it for a moment."""


class Owner:
    """The lock of a file, in a file beside it.

    Args:
        path: The file, links followed: there is one lock, whatever name the file goes by.
        shown: How the file is named to people.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self._path, self._shown = Path(f"{path}.owner"), shown
        self._handle: int | None = None

    def take(self) -> None:
        """Become the owner.

        Raises:
            StorageInUse: another process is.
            StorageError: the folder cannot be written.
        """
        if self._handle is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"Cannot write {self._path}: {error.strerror}. Choose another place.") from error
        if not (_locked(handle) or _locked(handle, after=GLANCE)):
            holder = _noted(handle)
            os.close(handle)
            raise StorageInUse(
                f"{self._shown} is in use by the process {holder or 'of another user'}; wait for it to end, or stop "
                "it. Watching (moopt status, moopt front, moopt report) is always possible."
            )
        self._handle = handle
        _HELD.add(self)
        with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)

    def give_up(self) -> None:
        """Let others."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def is_held_by(self, host: str, process: int) -> bool | None:
        """Whether a process is the owner; None if it is one of another machine. Writes nothing."""
        if host != socket.gethostname():
            return None
        if self._handle is not None:
            return process == os.getpid()
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _locked(handle, fcntl.LOCK_SH) and _noted(handle) == str(process)
        finally:
            os.close(handle)


_HELD: WeakSet[Owner] = WeakSet()


def _let_go() -> None:
    """A child that an evaluation forks owns nothing: else it held the lock when its parent is long gone."""
    for owner in _HELD:
        owner.give_up()


os.register_at_fork(after_in_child=_let_go)


def _locked(handle: int, kind: int = fcntl.LOCK_EX, after: float = 0.0) -> bool:
    """Take a lock, if it is free after so many seconds."""
    time.sleep(after)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _noted(handle: int) -> str:
    """The process that took the lock last."""
    return os.pread(handle, 32, 0).decode(errors="replace").strip()
