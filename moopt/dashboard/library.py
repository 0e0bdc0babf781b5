"""The studies of some storages, read anew when something was written, and what stands for each in a list."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moopt.errors import MooptError, StorageError
from moopt.history import History
from moopt.storage import Storage
from moopt.views import Card, views
from moopt.views.axes import axes

THUMBNAIL = 60
"""Points of a front in a list, at most."""


@dataclass
class Shelf:
    """A storage, and what was last read of it.

    Attributes:
        storage: Where it is.
        lock: Held while it is read: Optuna's journal is read by one at a time.
        studies: What was read of each study, by name: the storage's version then, the history, and its cards by id.
    """

    storage: Storage
    lock: threading.Lock = field(default_factory=threading.Lock)
    studies: dict[str, Read] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """A study as it was read.

    Attributes:
        version: Of the storage.
        mark: Another one for every change of the study.
        history: The study.
        running: Whether it runs; None where that cannot be seen from here.
        cards: By the names of their views; drawn when they are first asked for, None where there is none.
    """

    version: object
    mark: str
    history: History
    running: bool | None
    cards: dict[str, Card | None] = field(default_factory=dict)

    def card(self, name: str) -> Card | None:
        """A card by the name of its view.

        Raises:
            KeyError: there is no such view.
        """
        if name not in self.cards:
            self.cards[name] = views(self.history)[name](self.history)
        return self.cards[name]


class Library:
    """The studies of some storages.

    Args:
        locations: Paths and database URLs.
    """

    def __init__(self, locations: Sequence[str]) -> None:
        self._shelves = {key(location): Shelf(Storage(location)) for location in locations}

    def listed(self) -> list[dict[str, Any]]:
        """What stands for every study in a list; for a storage that cannot be read, why."""
        found: list[dict[str, Any]] = []
        for place, shelf in self._shelves.items():
            try:
                for name in self._names(shelf):
                    found.append({"storage": shelf.storage.shown, "place": place, **entry(self.read(place, name))})
            except MooptError as error:
                found.append({"storage": shelf.storage.shown, "place": place, "error": str(error)})
        return found

    def read(self, place: str, name: str) -> Read:
        """A study as it stands.

        Raises:
            KeyError: there is no such storage or study.
            MooptError: the storage cannot be read any more.
        """
        shelf = self._shelves[place]
        with shelf.lock:
            known, version = shelf.studies.get(name), _version(shelf.storage)
            if known is not None and known.version == version:
                return known
            history = _history(shelf.storage, name)
            mark, running = fingerprint(history), shelf.storage.runs(history)
            same = known is not None and known.mark == mark and known.running == running
            kept = known.cards if same and known is not None else {}
            shelf.studies[name] = Read(version, mark, history, running, kept)
            return shelf.studies[name]

    def _names(self, shelf: Shelf) -> list[str]:
        with shelf.lock:
            shelf.storage.open()
            return shelf.storage.studies()


def _history(storage: Storage, name: str) -> History:
    """A study, read anew.

    Raises:
        KeyError: there is none of that name.
        StorageError: the storage cannot be read.
    """
    try:
        storage.open()
        stored = storage.find(name)
        if stored is None:
            raise KeyError(name)
        return stored.history()
    except OSError as error:
        raise StorageError(f"{storage.shown} cannot be read any more: {error.strerror}.") from error


def _version(storage: Storage) -> object:
    """Equal as long as nothing was written.

    Raises:
        StorageError: the storage is not there any more.
    """
    try:
        return storage.version
    except OSError as error:
        raise StorageError(f"{storage.shown} cannot be read any more: {error.strerror}.") from error


def key(location: str) -> str:
    """A storage in an address: nothing that tells where it is."""
    return hashlib.sha256(location.encode()).hexdigest()[:12]


def fingerprint(history: History) -> str:
    """Another text for every change of a study."""
    states = ",".join(f"{trial.number}{trial.state[0]}" for trial in history.trials)
    rest = f"{len(history.events)} {sorted(history.measures)} {sum(e.outcome is not None for e in history.events)}"
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
