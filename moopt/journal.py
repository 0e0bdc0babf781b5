"""The embedded storage: one journal file, written in whole entries, synced when a trial has finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal import _storage as journal_storage
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial

from moopt.errors import StorageError, StorageInUse

# Optuna parses the distributions of every trial anew: at 120 variables that is a millisecond and 60 kB a trial.
journal_storage.json_to_distribution = lru_cache(maxsize=None)(json_to_distribution)  # type: ignore[attr-defined]

SPARE = 4 << 20
"""Bytes that must be free on the disk before a trial is begun: room for what comes of it."""


T = TypeVar("T")


class Batch(Generic[T]):
    """What is to be written in one piece: collected while a `together` block is open."""

    def __init__(self) -> None:
        self._held: list[T] | None = None

    @property
    def is_open(self) -> bool:
        """Whether entries are being collected."""
        return self._held is not None

    def takes(self, entries: Sequence[T]) -> bool:
        """Collect entries if a block is open; else they are to be written now."""
        if self._held is not None:
            self._held += entries
        return self._held is not None

    @contextlib.contextmanager
    def together(self, write: Callable[[list[T]], None]) -> Iterator[None]:
        """Collect; write everything at the end, nothing if the block fails."""
        self._held = []
        try:
            yield
            held, self._held = self._held, None
            write(held)
        finally:
            self._held = None


class Owner:
    """The right to write beside a file: held by one process, and given up by the system when that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def take(self) -> None:
        """Become the owner.

        Raises:
            StorageInUse: another process is.
            StorageError: the folder cannot be written.
        """
        if self._handle is not None:
            return
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(f"{path}.owner", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"Cannot write {path}.owner: {error.strerror}. Choose another place.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            raise StorageInUse(
                f"{path} is in use by the process {holder or 'of another user'}; wait for it to end, or stop it. "
                "Watching (moopt status, moopt front, moopt report) is always possible."
            ) from None
        self._handle = handle
        with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)

    def give_up(self) -> None:
        """Let others."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Journal:
    """A journal file as a place for studies: see `moopt.storage.Place`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = Owner(path)
        self._backend: _Backend | None = None
        self._storage: BaseStorage | None = None
        self.shown = str(path)

    @property
    def version(self) -> object:
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def own(self, study: str) -> None:
        self._owner.take()
        if self._path.exists():
            _check(self._path)
            _cut_torn_line(self._path)
        if (lock := Path(f"{self._path}.lock")).is_symlink():  # Optuna's, of a writer that is gone
            lock.unlink()
        self.check_room()

    def disown(self) -> None:
        self._owner.give_up()

    def connect(self, *, create: bool) -> BaseStorage:
        if self._path.exists():
            _check(self._path)
        elif not create:
            raise StorageError(f"There is no storage at {self._path}.")
        self._backend = _Backend(str(self._path))
        self._storage = JournalStorage(self._backend)
        return self._storage

    def together(self) -> contextlib.AbstractContextManager[None]:
        assert self._backend is not None
        return self._backend.together()

    def begin(self, study_id: int) -> None:
        """The lock is held as long as the process lives: there is no other owner."""

    def trials(self, study_id: int) -> list[FrozenTrial]:
        assert self._storage is not None
        return self._storage.get_all_trials(study_id, deepcopy=False)

    def check_room(self) -> None:
        found = os.statvfs(self._path.parent)
        free = found.f_bavail * found.f_frsize
        if free < SPARE:
            raise StorageError(
                f"The disk of {self._path} is full: {free / 2**20:.1f} MiB are free, {SPARE >> 20} are needed to begin "
                "another trial. Make room and run it again; what is stored is safe."
            )


class _Backend(JournalFileBackend):
    """A journal whose entries of one `together` block are written in one piece.

    All is on the disk when a trial has finished. That one began is not synced by itself: after a power cut it would be
    asked for again, and whatever is written later is synced with all that came before.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._batch: Batch[dict[str, Any]] = Batch()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._batch.takes(logs):
            return
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        before = None
        try:
            with get_lock_file(self._lock), open(self._file_path, "ab", buffering=0) as file:
                before = file.tell()
                _write_all(file.fileno(), lines.encode())
                if any(log["op_code"] != JournalOperation.CREATE_TRIAL for log in logs):
                    os.fsync(file.fileno())
        except OSError as error:
            if before is not None:  # leave no half of an entry
                with contextlib.suppress(OSError):
                    os.truncate(self._file_path, before)
            raise StorageError(f"Cannot write {self._file_path}: {error.strerror}. What it has is safe.") from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if not self._batch.is_open:  # else what is to be read is not written yet
            yield from super().read_logs(log_number_from)

    def together(self) -> contextlib.AbstractContextManager[None]:
        return self._batch.together(self.append_logs)


def _write_all(handle: int, data: bytes) -> None:
    """A nearly full disk takes a part of what is written without an error."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _check(path: Path) -> None:
    """Refuse a file that is no Optuna journal, before anything is written to it."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder; expected a file, or a database URL.")
    try:
        with path.open("rb") as file:
            first = file.readline()
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    if first.startswith(b'{"op_code":') or b'{"op_code":'.startswith(first):  # the first line may be torn
        return
    raise StorageError(f"{path} is not a moopt storage (its first line is no journal entry); choose another path.")


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left half-written."""
    try:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Make it writable, or choose another.") from error
