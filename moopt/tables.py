"""Optuna's tables in a database, written in bulk by the one owner of a study; `databases.py` says where they are.

Optuna writes a trial row by row, 200 ms at 120 variables. Here a trial is written in one transaction of a few
statements, on the one connection that also holds the study's lock: while it lives, nobody else writes, and when it is
lost, the lock is taken again before anything is written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, OperationalError

from moopt import database_locks
from moopt.errors import StorageError, StorageInUse
from moopt.journal import Batch

logger = logging.getLogger("moopt")

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between two attempts to reach a database that does not answer; the last one again and again."""
EPOCH = "moopt:epoch"
"""Counts the owners of a study: one who lost the connection may go on only if it has not moved since."""


class StillLocked(Exception):
    """Our own lost session still holds the lock."""


Statements = Callable[[sql.Connection], None]
_TRIALS: Any = models.TrialModel.__table__
_PARAMS: Any = models.TrialParamModel.__table__
_VALUES: Any = models.TrialValueModel.__table__
_USER: Any = models.TrialUserAttributeModel.__table__
_SYSTEM: Any = models.TrialSystemAttributeModel.__table__
_STUDY_USER: Any = models.StudyUserAttributeModel.__table__


class Tables(RDBStorage):
    """Optuna's tables, written in bulk by one owner.

    Args:
        url: With the password.
        shown: Without.
        create: Whether to make the tables that are missing; else they must be there.
    """

    def __init__(self, url: str, shown: str, create: bool) -> None:
        in_memory = url in ("sqlite://", "sqlite:///:memory:")
        engine = {} if in_memory else {"poolclass": sql.NullPool}  # nothing left open
        super().__init__(url, engine_kwargs=engine, skip_table_creation=not create)
        self._shown = shown
        self._connection: sql.Connection | None = None
        self._locked: str | None = None
        self._session: int | None = None
        self._epoch: int | None = None
        self._batch: Batch[Statements] = Batch()

    # One owner.

    def lock(self, study: str) -> None:
        """Become the only writer of a study.

        Raises:
            StorageInUse: another coordinator is.
        """
        self._locked, self._epoch, self._session = study, None, None
        try:
            self._connected()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Let others: the lock goes with the connection."""
        self._locked = None
        if self._connection is not None:
            with contextlib.suppress(DBAPIError):
                self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _connected(self) -> sql.Connection:
        """The owner's connection, with the lock."""
        if self._connection is None:
            connection = self.engine.connect()
            try:
                if self._locked is not None:
                    self._take_lock(connection, self._locked)
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _take_lock(self, connection: sql.Connection, study: str) -> None:
        """Lock a study; if the server still has our session of before it lost us, that one is ended.

        Raises:
            StorageInUse: another coordinator has it, or had it meanwhile.
            StillLocked: the server has not noticed yet that we lost the connection.
        """
        lost = self._session
        if lost is not None:
            database_locks.end_session(connection, study, lost)
        if database_locks.take(connection, study):
            self._session = database_locks.session(connection)
            connection.commit()
            return
        if lost is None:
            raise StorageInUse(
                f"The study {study!r} in {self._shown} is run by another process; wait for it to end, or stop it. "
                "Watching (moopt status, moopt front, moopt report) is always possible."
            )
        self._check_epoch(connection)
        raise StillLocked("it has not ended our lost session yet")

    def _check_epoch(self, connection: sql.Connection) -> None:
        if self._epoch is not None and _epoch(connection, self._study_id) != self._epoch:
            raise StorageInUse(
                f"Another process took over the study {self._locked!r} in {self._shown} while this one had lost "
                "its connection; this one stops. What it had finished until then is stored."
            )

    def begin_epoch(self, study_id: int) -> None:
        """Note that a new owner begins."""
        counted: list[int] = []

        def count(connection: sql.Connection) -> None:
            counted.append((_epoch(connection, study_id) or 0) + 1)
            _replace(connection, _STUDY_USER, {"study_id": study_id}, {EPOCH: counted[-1]})

        self._study_id, self._epoch = study_id, None
        self._write([count])
        self._epoch = counted[-1]  # not before it is stored

    # Writing: in one transaction, again and again until the database answers.

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write what comes in one transaction."""
        return self._batch.together(self._write)

    def _write(self, statements: Sequence[Statements]) -> None:
        if self._batch.takes(statements):
            return
        waited = 0
        while True:
            try:
                self._transact(statements)
            except (DBAPIError, StillLocked) as error:
                if isinstance(error, DBAPIError) and not self._lose(error):
                    message = f"Cannot write to {self._shown}: {_first(error)}. What it has is safe."
                    raise StorageError(message) from error
                if waited == 0:
                    logger.warning(
                        "%s does not answer (%s). Waiting for it; nothing is lost.", self._shown, _first(error)
                    )
                time.sleep(PAUSES[min(waited, len(PAUSES) - 1)])
                waited += 1
            else:
                if waited:
                    logger.warning("%s answers again; going on.", self._shown)
                return

    def _lose(self, error: DBAPIError) -> bool:
        """Give the connection up after an error. True if that was the connection's fault, so that another may do."""
        lost = error.connection_invalidated or self._connection is None
        connection, self._connection = self._connection, None
        if connection is not None:
            for give_up in (connection.invalidate, connection.close):
                with contextlib.suppress(DBAPIError):
                    give_up()
        return lost and isinstance(error, OperationalError)

    def _transact(self, statements: Sequence[Statements]) -> None:
        again = self._connection is None
        connection = self._connected()
        with connection.begin():
            if again:
                self._check_epoch(connection)
            for execute in statements:
                execute(connection)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None or "moopt:known" not in template_trial.user_attrs:
            return super().create_new_trial(study_id, template_trial)
        template, first = template_trial, [e for k, e in template_trial.user_attrs.items() if k != "moopt:known"]
        number = first[0]["trial"]  # of the job that begins it
        found: list[int] = []

        def create(connection: sql.Connection) -> None:
            here = sql.and_(_TRIALS.c.study_id == study_id, _TRIALS.c.number == number)
            trial_id = connection.scalar(sql.select(_TRIALS.c.trial_id).where(here))
            if trial_id is None:  # else it was written, and only the answer was lost
                row = {"study_id": study_id, "number": number, "state": template.state, "datetime_start": _now()}
                trial_id = connection.execute(sql.insert(_TRIALS).values(row)).inserted_primary_key[0]  # type: ignore[index]
                names = template.distributions
                params = [
                    {
                        "trial_id": trial_id,
                        "param_name": name,
                        "param_value": names[name].to_internal_repr(value),
                        "distribution_json": distribution_to_json(names[name]),
                    }
                    for name, value in template.params.items()
                ]
                if params:
                    connection.execute(sql.insert(_PARAMS), params)
                # The configuration once more, in one row: reading 120 rows a trial takes long.
                notes = {**template.user_attrs, "moopt:config": template.params}
                _insert(connection, _USER, {"trial_id": trial_id}, notes)
            found.append(trial_id)

        self._write([create])
        return found[-1]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write([lambda connection: _replace(connection, _STUDY_USER, {"study_id": study_id}, {key: value})])

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write([lambda connection: _replace(connection, _USER, {"trial_id": trial_id}, {key: value})])

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write([lambda connection: _replace(connection, _SYSTEM, {"trial_id": trial_id}, {key: value})])

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        def finish(connection: sql.Connection) -> None:
            connection.execute(sql.delete(_VALUES).where(_VALUES.c.trial_id == trial_id))
            stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values or ()]
            rows = [
                {"trial_id": trial_id, "objective": i, "value": value, "value_type": kind}
                for i, (value, kind) in enumerate(stored)
            ]
            if rows:
                connection.execute(sql.insert(_VALUES), rows)
            ended = {"datetime_complete": _now()} if state.is_finished() else {}
            connection.execute(sql.update(_TRIALS).where(_TRIALS.c.trial_id == trial_id).values(state=state, **ended))

        self._write([finish])
        return True

    # Reading: without Optuna's rows of parameters and without its objects.

    def version(self) -> object:
        """Changes whenever something is written: attributes are replaced, never changed, so their numbers rise."""
        columns = (_USER.c.trial_user_attribute_id, _STUDY_USER.c.study_user_attribute_id, _VALUES.c.trial_value_id)
        newest = sql.select(*(sql.select(sql.func.max(column)).scalar_subquery() for column in columns))
        with self.engine.connect() as connection:
            return tuple(connection.execute(newest).one())

    def moopt_trials(self, study_id: int) -> list[FrozenTrial]:
        """The trials of a study of moopt, by number, without their distributions."""
        with self.engine.connect() as connection:
            columns = (_TRIALS.c.trial_id, _TRIALS.c.number, _TRIALS.c.state, _TRIALS.c.datetime_complete)
            rows = connection.execute(
                sql.select(*columns).where(_TRIALS.c.study_id == study_id).order_by(_TRIALS.c.number)
            ).all()
            user = self._grouped(connection, study_id, _USER, "key", "value_json")
            system = self._grouped(connection, study_id, _SYSTEM, "key", "value_json")
            values = self._grouped(connection, study_id, _VALUES, "objective", "value")
        trials = []
        for trial_id, number, state, ended in rows:
            notes = {key: json.loads(value) for key, value in user.get(trial_id, {}).items()}
            trials.append(
                FrozenTrial(
                    number=number,
                    trial_id=trial_id,
                    state=state,
                    value=None,
                    values=[value for _, value in sorted(values.get(trial_id, {}).items())] or None,
                    datetime_start=None,
                    datetime_complete=ended and ended.replace(tzinfo=UTC),
                    params=notes.pop("moopt:config", {}),
                    distributions={},
                    user_attrs=notes,
                    intermediate_values={},
                    system_attrs={key: json.loads(value) for key, value in system.get(trial_id, {}).items()},
                )
            )
        return trials

    def _grouped(
        self, connection: sql.Connection, study_id: int, table: Any, key: str, value: str
    ) -> dict[int, dict[Any, Any]]:
        """What a table has of each trial of a study."""
        query = sql.select(table.c.trial_id, table.c[key], table.c[value]).join(
            _TRIALS, _TRIALS.c.trial_id == table.c.trial_id
        )
        found: dict[int, dict[Any, Any]] = {}
        for trial_id, name, held in connection.execute(query.where(_TRIALS.c.study_id == study_id)):
            found.setdefault(trial_id, {})[name] = held
        return found


def _replace(connection: sql.Connection, table: Any, owner: Mapping[str, int], entries: Mapping[str, Any]) -> None:
    """Set attributes, whether they are there or not."""
    ((column, number),) = owner.items()
    connection.execute(sql.delete(table).where(table.c[column] == number, table.c.key.in_(list(entries))))
    _insert(connection, table, owner, entries)


def _insert(connection: sql.Connection, table: Any, owner: Mapping[str, int], entries: Mapping[str, Any]) -> None:
    rows = [{**owner, "key": key, "value_json": json.dumps(value)} for key, value in entries.items()]
    connection.execute(sql.insert(table), rows)


def _epoch(connection: sql.Connection, study_id: int) -> int | None:
    found = sql.select(_STUDY_USER.c.value_json).where(_STUDY_USER.c.study_id == study_id, _STUDY_USER.c.key == EPOCH)
    value = connection.scalar(found)
    return None if value is None else int(value)


def _now() -> datetime:
    """As Optuna's tables have it: UTC, without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)


def _first(error: DBAPIError | StillLocked) -> str:
    return str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()[0]
