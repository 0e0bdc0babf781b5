"""A database as the place of studies that several people share: PostgreSQL, MySQL or SQLite, by URL.

Optuna writes a trial row by row, 200 ms at 120 variables. Here a trial is written in one transaction of a few
statements, on the one connection that also holds the study's lock: while it lives, nobody else writes, and when it is
lost, the lock is taken again before anything is written (`tables.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sql
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from moopt import database_locks
from moopt.errors import StorageError
from moopt.ownership import Owner
from moopt.tables import Tables

DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
"""The driver that moopt's extras install, where a URL names none."""
MAGIC = b"SQLite format 3\0"
"""What an SQLite file begins with."""


class Database:
    """A database as a place for studies: see `moopt.storage.Place`.

    Args:
        location: Its URL. The path of an SQLite file is that of now, links followed, whatever changes later.
    """

    def __init__(self, location: str) -> None:
        try:
            url = sql.make_url(location)
        except sql.exc.ArgumentError as error:
            raise StorageError(
                f"Cannot read the URL {location!r}; expected one such as postgresql://user:password@host/name."
            ) from error
        self.shown = url.render_as_string(hide_password=True)
        self._url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
        self._file: Path | None = None
        self._owner: Owner | None = None
        is_sqlite = self._url.get_backend_name() == "sqlite"
        self._in_memory = is_sqlite and self._url.database in (None, "", ":memory:")
        if is_sqlite and not self._in_memory:
            self._file = Path(os.path.realpath(str(self._url.database)))
            self._owner = Owner(self._file, self.shown)
            self._url = self._url.set(database=str(self._file))
        self._tables: Tables | None = None
        self._study = ""

    @property
    def version(self) -> object:
        return object() if self._tables is None else self._tables.version()

    @property
    def exists(self) -> bool:
        if self._in_memory or (self._file is not None and not self._file.exists()):
            return False
        with self._reached():
            engine = sql.create_engine(self._url, poolclass=sql.NullPool)
            return sql.inspect(engine).has_table("studies")

    def own(self, study: str) -> None:
        self._study = study
        if self._owner is not None and self._file is not None:
            if self._file.exists():
                _check(self._file, self.shown)
            self._owner.take()
        elif self._tables is not None:
            self._tables.lock(study)

    def disown(self) -> None:
        if self._owner is not None:
            self._owner.give_up()
        if self._tables is not None:
            self._tables.unlock()
        self._study = ""

    def runs(self, study: str, host: str, process: int) -> bool | None:
        if self._owner is not None:
            return self._owner.is_held_by(host, process)
        assert self._tables is not None
        with self._reached(), self._tables.engine.connect() as connection:
            return database_locks.is_taken(connection, study)

    def connect(self, *, create: bool) -> BaseStorage:
        if not create and not self.exists:
            raise StorageError(f"There is no storage at {self.shown}.")
        with self._reached():
            self._tables = Tables(self._url.render_as_string(hide_password=False), self.shown, create)
        if self._study and self._owner is None:
            self._tables.lock(self._study)
        return self._tables

    def together(self) -> contextlib.AbstractContextManager[None]:
        assert self._tables is not None
        return self._tables.together()

    def check_room(self) -> None:
        """The server's disk is the server's business."""

    def begin(self, study_id: int) -> None:
        assert self._tables is not None
        self._tables.begin_epoch(study_id)

    def trials(self, study_id: int) -> list[FrozenTrial]:
        assert self._tables is not None
        return self._tables.moopt_trials(study_id)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """What keeps us from the database, in a line."""
        try:
            yield
        except ImportError as error:
            raise StorageError(f"Cannot open {self.shown}: {error}. Install the database's driver.") from error
        except Exception as error:
            cause = error.__cause__ or error
            reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
            raise StorageError(f"Cannot open {self.shown}: {reason}") from error


def _check(path: Path, shown: str) -> None:
    """Refuse a file of something else, before anything is written beside it."""
    try:
        with path.open("rb") as file:
            first = file.read(len(MAGIC))
    except OSError as error:
        raise StorageError(f"Cannot read {shown}: {error.strerror}.") from error
    if first not in (MAGIC, b""):
        raise StorageError(f"{shown} is no SQLite file; choose another path.")
