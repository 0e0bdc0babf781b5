"""The embedded storage: one journal file, written in whole entries, synced when a trial has finished."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal import _storage as journal_storage
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial

from moopt.errors import StorageError
from moopt.ownership import Owner

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


class Journal:
    """A journal file as a place for studies: see `moopt.storage.Place`.

    Args:
        location: The file's path. Links are followed and the working directory is that of now, whatever changes later.
    """

    def __init__(self, location: str) -> None:
        self.shown = location
        self._path = Path(os.path.realpath(location))
        self._owner = Owner(self._path, location)
        self._backend: _Backend | None = None
        self._storage: BaseStorage | None = None

    @property
    def version(self) -> object:
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def own(self, study: str) -> None:
        if self._path.exists():
            _check(self._path, self.shown)
        self._owner.take()
        if self._path.exists():
            _cut_torn_line(self._path, self.shown)
        if (lock := Path(f"{self._path}.lock")).is_symlink():  # Optuna's, of a writer that is gone
            lock.unlink()
        self.check_room()

    def disown(self) -> None:
        self._owner.give_up()

    def runs(self, study: str, host: str, process: int) -> bool | None:
        return self._owner.is_held_by(host, process)

    def connect(self, *, create: bool) -> BaseStorage:
        if self._path.exists():
            _check(self._path, self.shown)
        elif not create:
            raise StorageError(f"There is no storage at {self.shown}.")
        self._backend = _Backend(str(self._path), self.shown)
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
        try:
            found = os.statvfs(self._path.parent)
        except OSError as error:
            raise StorageError(f"Cannot write {self.shown}: {error.strerror}.") from error
        free = found.f_bavail * found.f_frsize
        if free < SPARE:
            whole = math.floor(free / 2**20 * 10) / 10
            raise StorageError(
                f"The disk of {self.shown} is full: {whole} MiB are free, {SPARE >> 20} are needed to begin another "
                "trial. Make room and run it again; what is stored is safe."
            )


class _Backend(JournalFileBackend):
    """A journal whose entries of one `together` block are written in one piece.

    All is on the disk when a trial has finished. That one began is not synced by itself: after a power cut it would be
    asked for again, and whatever is written later is synced with all that came before.
    """

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(path)
        self._shown = shown
        self._batch: Batch[dict[str, Any]] = Batch()
        self._read = 0, 0
        """How many entries were read, and the bytes of those."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._batch.takes(logs):
            return
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        before = None
        try:
            with get_lock_file(self._lock), open(self._file_path, "ab", buffering=0, opener=_not_anew) as file:
                before = file.tell()
                _write_all(file.fileno(), lines.encode())
                if any(log["op_code"] != JournalOperation.CREATE_TRIAL for log in logs):
                    os.fsync(file.fileno())
        except OSError as error:
            if before is not None:  # leave no half of an entry
                with contextlib.suppress(OSError):
                    os.truncate(self._file_path, before)
            lost = "It was removed" if isinstance(error, FileNotFoundError) else "What it has is safe"
            raise StorageError(f"Cannot write {self._shown}: {error.strerror}. {lost}.") from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The entries from a number on, but for a last line that is being written, or was when a crash came."""
        if self._batch.is_open:  # what is to be read is not written yet
            return
        if log_number_from < self._read[0]:
            self._read = 0, 0
        damage = None
        with open(self._file_path, "rb") as file:
            file.seek(self._read[1])
            for line in file:
                number = self._read[0] + 1
                if damage is not None:
                    raise StorageError(
                        f"{self._shown} is damaged in line {number}: {damage}. Restore a copy of it from before."
                    )
                try:
                    entry = _parsed(line)
                except ValueError as error:
                    damage = error
                    continue
                self._read = number, self._read[1] + len(line)
                if number > log_number_from:
                    yield entry

    def together(self) -> contextlib.AbstractContextManager[None]:
        return self._batch.together(self.append_logs)


def _parsed(line: bytes) -> dict[str, Any]:
    """An entry. Half of the time that a storage takes to be read goes here.

    Raises:
        ValueError: the line is none, or its end is missing.
    """
    if not line.endswith(b"\n"):
        raise ValueError("its end is missing")
    try:
        entry: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:  # Python writes numbers and text that are no JSON, such as NaN
        entry = json.loads(line)
    return entry


def _not_anew(path: str, flags: int) -> int:
    """Open a file that is there: what was removed while a study runs is not begun again as half a study."""
    return os.open(path, flags & ~os.O_CREAT)


def _write_all(handle: int, data: bytes) -> None:
    """A nearly full disk takes a part of what is written without an error."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _check(path: Path, shown: str) -> None:
    """Refuse a file that is no Optuna journal, before anything is written to it."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file that can grow"
        raise StorageError(f"{shown!r} is {what}; expected a file, or a database URL.")
    try:
        with path.open("rb") as file:
            first = file.readline()
    except OSError as error:
        raise StorageError(f"Cannot read {shown}: {error.strerror}.") from error
    if first.startswith(b'{"op_code":') or b'{"op_code":'.startswith(first):  # the first line may be torn
        return
    raise StorageError(f"{shown} is not a moopt storage (its first line is no journal entry); choose another path.")


def _cut_torn_line(path: Path, shown: str) -> None:
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
        raise StorageError(f"Cannot write {shown}: {error.strerror}. Make it writable, or choose another.") from error
