"""The studies of some storages, read anew when something was written, and what stands for each in a list."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.storages import BaseStorage

from moopt.dashboard.sent import Sent
from moopt.errors import MooptError, StorageError
from moopt.history import History
from moopt.storage import Storage
from moopt.views import Card, views
from moopt.views.axes import axes

THUMBNAIL = 60
"""Points of a front in a list, at most."""
PATIENCE = 0.3
"""Seconds that a list waits for a storage that is being read for the first time."""
GONE = -1
"""The number of no file."""


class Missing(KeyError):
    """There is no such storage, study, card or trial."""


@dataclass
class Shelf:
    """A storage, and what was last read of it.

    Attributes:
        location: Where it is.
        storage: The storage, opened anew when the file there is another one.
        file: Which file that was; None before it was first seen.
        lock: Held while it is read: Optuna's journal is read by one at a time.
        studies: What was last read of each study, by name.
    """

    location: str
    storage: Storage
    file: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    studies: dict[str, Read] = field(default_factory=dict)

    def version(self) -> object:
        """Equal as long as nothing was written.

        Raises:
            StorageError: the storage is not there any more.
        """
        with reading(self.storage.shown):
            try:
                file = 0 if "://" in self.location else os.stat(self.location).st_ino
            except FileNotFoundError:
                if self.file is None:  # it never was there, which opening it says
                    return None
                self.file = GONE
                raise
            if self.file not in (None, file):
                self.storage = Storage(self.location)
                self.studies = {name: replace(read, version=GONE) for name, read in self.studies.items()}
            self.file = file
            return file, self.storage.version

    def history(self, name: str) -> History:
        """A study, read anew.

        Raises:
            Missing: there is none of that name.
            StorageError: it cannot be read.
        """
        with reading(self.storage.shown):
            self.storage.open()
            stored = self.storage.find(name)
        if stored is None:
            raise Missing(name)
        with reading(self.storage.shown, name):
            return stored.history()


@dataclass(frozen=True)
class Read:
    """A study as it was read.

    Attributes:
        version: Of the storage.
        mark: Another one for every change of the study.
        history: The study.
        running: Whether it runs; None where that cannot be seen from here.
        cards: By the names of their views; drawn when they are first asked for, None where there is none.
        sent: What browsers were told of each card, now and before.
        locks: Held while a card is drawn, so that two who ask have one drawn.
    """

    version: object
    mark: str
    history: History
    running: bool | None
    cards: dict[str, Card | None] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)
    locks: dict[str, threading.Lock] = field(default_factory=dict)

    def card(self, name: str) -> Card | None:
        """A card by the name of its view.

        Raises:
            Missing: there is no such view.
        """
        if (view := views(self.history).get(name)) is None:
            raise Missing(name)
        with self.locks.setdefault(name, threading.Lock()):
            if name not in self.cards:
                self.cards[name] = view(self.history)
            return self.cards[name]


class Library:
    """The studies of some storages.

    Args:
        locations: Paths and database URLs.
    """

    def __init__(self, locations: Sequence[str]) -> None:
        self._shelves = {key(location): Shelf(location, Storage(location)) for location in locations}

    @property
    def places(self) -> list[str]:
        """The storages, as addresses name them."""
        return list(self._shelves)

    def listed(self) -> list[dict[str, Any]]:
        """What stands for every study in a list; for what cannot be read, why, and what is being read, that it is."""
        found: list[dict[str, Any]] = []
        for place, shelf in self._shelves.items():
            where = {"storage": shelf.storage.shown, "place": place}
            try:
                names = self._names(shelf)
            except MooptError as error:
                found.append({**where, "error": str(error)})
                continue
            found += (
                [{**where, "reading": True}] if names is None else [{**where, **self._entry(place, n)} for n in names]
            )
        return found

    def read(self, place: str, name: str) -> Read:
        """A study as it stands.

        Raises:
            Missing: there is no such storage or study.
            StorageError: the storage cannot be read any more.
        """
        if (shelf := self._shelves.get(place)) is None:
            raise Missing(place)
        with shelf.lock:
            known, version = shelf.studies.get(name), shelf.version()
            if known is not None and known.version == version:
                return known
            history = shelf.history(name)
            mark, running = fingerprint(history), shelf.storage.runs(history)
            read = Read(version, mark, history, running, sent={} if known is None else known.sent)
            if known is not None and known.mark == mark:
                read = replace(known, version=version, running=running)
            shelf.studies[name] = read
            return read

    @contextmanager
    def opened(self, place: str) -> Iterator[BaseStorage]:
        """What Optuna has of a storage, which nobody else reads meanwhile.

        Raises:
            Missing: there is no such storage.
            StorageError: it cannot be read any more.
        """
        if (shelf := self._shelves.get(place)) is None:
            raise Missing(place)
        with shelf.lock, reading(shelf.storage.shown):
            shelf.version()
            shelf.storage.open()
            assert shelf.storage.optuna is not None
            yield shelf.storage.optuna

    def _names(self, shelf: Shelf) -> list[str] | None:
        """The studies of a storage; None while it is being read for the first time and that takes its while."""
        if not shelf.lock.acquire(timeout=-1 if shelf.studies else PATIENCE):
            return None
        try:
            shelf.version()
            with reading(shelf.storage.shown):
                shelf.storage.open()
                return shelf.storage.studies()
        finally:
            shelf.lock.release()

    def _entry(self, place: str, name: str) -> dict[str, Any]:
        try:
            with reading(self._shelves[place].storage.shown, name):
                found = entry(self.read(place, name))
                json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # what cannot be told is its alone
                return found
        except Missing:
            return {"name": _printable(name), "error": "It was removed."}
        except MooptError as error:
            return {"name": _printable(name), "error": _printable(str(error))}


@contextmanager
def reading(shown: str, study: str = "") -> Iterator[None]:
    """What keeps us from a storage, as a `StorageError` of one line."""
    try:
        yield
    except (MooptError, Missing):
        raise
    except OSError as error:
        raise StorageError(f"{shown} cannot be read any more: {error.strerror}.") from error
    except Exception as error:
        what = f"The study {study!r} in {shown}" if study else shown
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StorageError(f"{what} cannot be read ({why}). Another version of moopt may have written it.") from error


def _printable(text: str) -> str:
    """Text that UTF-8 has: a name from the bytes of a shell need not be."""
    return text.encode(errors="backslashreplace").decode()


def key(location: str) -> str:
    """A storage in an address: nothing that tells where it is."""
    return hashlib.sha256(location.encode()).hexdigest()[:12]


def fingerprint(history: History) -> str:
    """Another text for every change of a study."""
    states = ",".join(f"{trial.state[0]}{trial.values}" for trial in history.trials)
    busy = [(worker.name, worker.job and worker.job.trial, worker.done, worker.failed) for worker in history.workers]
    rest = (
        f"{busy} {len(history.events)} {sorted(history.measures)} {sum(e.outcome is not None for e in history.events)}"
    )
    return hashlib.sha256(f"{states} {rest}".encode()).hexdigest()[:16]


def entry(read: Read) -> dict[str, Any]:
    """What stands for a study in a list: its name, how it stands, and the outline of its front."""
    history, places = read.history, axes(read.history)
    front = history.front()
    shown = front[:: max(1, len(front) // THUMBNAIL)]
    names = [places.x.name] + ([places.y.name] if places.y is not None else [])
    return {
        "name": history.name,
        "running": read.running,
        "trials": len(history.trials),
        "complete": sum(trial.state == "complete" for trial in history.trials),
        "failed": sum(trial.state == "failed" for trial in history.trials),
        "objectives": [objective.label for objective in history.objectives],
        "algorithm": history.meta.get("identity", {}).get("algorithm", {}).get("algorithm", ""),
        "front": len(front),
        "outline": [[trial.values[name] for name in names] for trial in shown],
    }
