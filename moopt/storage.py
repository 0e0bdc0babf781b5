"""Trials <-> an Optuna storage: an embedded journal file by default, memory, or a database by URL.

What is stored reads well in Optuna itself: parameters with their true values, objectives as values under their names,
constraints as Optuna's constraints. moopt's own entries start with "moopt:".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal import _storage as journal_storage
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moopt.errors import StorageError, StorageInUse, StudyError
from moopt.history import Event, History, Trial
from moopt.jobs import Job
from moopt.problem import Constraint, Evaluation, Objective
from moopt.records import (
    Distributions,
    distributions,
    job_entry,
    outcome_entry,
    stored_job,
    stored_outcome,
    stored_trial,
    told,
)
from moopt.space import Space

# Optuna parses the distributions of every trial anew: at 120 variables that is a millisecond and 60 kB a trial.
journal_storage.json_to_distribution = lru_cache(maxsize=None)(json_to_distribution)  # type: ignore[attr-defined]


class _Journal(JournalFileBackend):
    """A journal whose entries of one `together` block are written in one piece.

    All is on the disk when a trial has finished. That one began is not synced by itself: after a power cut it would be
    asked for again, and whatever is written later is synced with all that came before.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._held: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is not None:
            self._held += logs
            return
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            with get_lock_file(self._lock), open(self._file_path, "ab") as file:
                file.write(lines.encode())
                file.flush()
                if any(log["op_code"] != JournalOperation.CREATE_TRIAL for log in logs):
                    os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"Cannot write {self._file_path}: {error.strerror}. What it has is safe.") from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if self._held is None:  # else what is to be read is not written yet
            yield from super().read_logs(log_number_from)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._held = []
        try:
            yield
            held, self._held = self._held, None
            self.append_logs(held)
        finally:
            self._held = None


class Storage:
    """Where studies are kept. Only its owner writes; anyone may read.

    Args:
        location: A path, a database URL such as "postgresql://...", or None for memory.
    """

    def __init__(self, location: str | os.PathLike[str] | None) -> None:
        self.location = None if location is None else os.fspath(location)
        self._journal: _Journal | None = None
        self._owner: int | None = None
        self.optuna: BaseStorage | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is one journal file."""
        return self.location is not None and "://" not in self.location

    @property
    def version(self) -> object:
        """Equal as long as nothing was written, where that is cheap to know; else never equal."""
        if self.location is None:
            return 0
        if not self.is_file:
            return object()
        path = Path(self.location)
        return path.stat().st_size if path.exists() else 0

    def open(self, *, own: bool) -> None:
        """Connect; with `own` become the only writer.

        Raises:
            StorageInUse: another process owns it.
            StorageError: it cannot be read or written, or is no storage.
        """
        try:
            if own and self.is_file and self._owner is None:
                self._own()
            if self.optuna is None:
                self._connect(own)
        except BaseException:
            self.close()
            raise

    def _connect(self, own: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.location is None:
            self.optuna = InMemoryStorage()
        elif self.is_file:
            path = Path(self.location)
            if path.exists():
                _check_journal(path)
            elif not own:
                raise StorageError(f"There is no storage at {path}.")
            self._journal = _Journal(str(path))
            self.optuna = _opened(lambda: JournalStorage(self._journal), path)
        else:
            self.optuna = _opened(lambda: RDBStorage(self.location), self.location)

    def close(self) -> None:
        """Give up ownership. What is stored stays."""
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def studies(self) -> list[str]:
        """The names of the moopt studies in it."""
        assert self.optuna is not None
        return sorted(s.study_name for s in self.optuna.get_all_studies() if "moopt:meta" in s.user_attrs)

    def create(self, name: str, objectives: list[Objective], meta: Mapping[str, Any]) -> StoredStudy:
        """A new study."""
        assert self.optuna is not None
        directions = [StudyDirection.MINIMIZE if o.direction == "min" else StudyDirection.MAXIMIZE for o in objectives]
        for stored in self.optuna.get_all_studies():
            if stored.study_name == name and self._unfinished(stored._study_id):
                self.optuna.delete_study(stored._study_id)
        study_id = self.optuna.create_new_study(directions, name)
        with self.together():
            self.optuna.set_study_user_attr(study_id, "moopt:meta", meta)
            self.optuna.set_study_system_attr(study_id, "study:metric_names", [o.label for o in objectives])
        return StoredStudy(self, name, study_id)

    def find(self, name: str) -> StoredStudy | None:
        """The study of that name.

        Raises:
            StudyError: Optuna has a study of that name that moopt did not write.
        """
        assert self.optuna is not None
        for stored in self.optuna.get_all_studies():
            if stored.study_name == name and "moopt:meta" in stored.user_attrs:
                return StoredStudy(self, name, stored._study_id)
            if stored.study_name == name and not self._unfinished(stored._study_id):
                raise StudyError(f"The study {name!r} in {self.location} was not written by moopt; use another name.")
        return None

    def _unfinished(self, study_id: int) -> bool:
        """Whether it is what a crash while a study was created leaves: a name and nothing else."""
        assert self.optuna is not None
        attributes = self.optuna.get_study_user_attrs(study_id) or self.optuna.get_study_system_attrs(study_id)
        return not attributes and not self.optuna.get_all_trials(study_id, deepcopy=False)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write what comes in one piece, where the storage can."""
        with self._journal.together() if self._journal else contextlib.nullcontext():
            yield

    def _own(self) -> None:
        assert self.location is not None
        path = Path(self.location)
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
        self._owner = handle
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        if path.exists():
            _check_journal(path)
            _cut_torn_line(path)
        if (lock := Path(f"{path}.lock")).is_symlink():  # Optuna's, of a writer that is gone
            lock.unlink()


class StoredStudy:
    """One study in a storage: writes events as they happen, and reads them back as a `History`."""

    def __init__(self, storage: Storage, name: str, study_id: int) -> None:
        assert storage.optuna is not None
        self._storage, self._optuna, self.name, self._id = storage, storage.optuna, name, study_id
        self._trial_ids: dict[int, int] = {}
        self._distributions = Distributions()

    @property
    def meta(self) -> dict[str, Any]:
        """What the study was created with."""
        return dict(self._optuna.get_study_user_attrs(self._id)["moopt:meta"])

    def issue(self, seq: int, job: Job, space: Space, known: Mapping[str, float]) -> None:
        """Store that a job was dispatched: a new trial, or an entry of the study for other kinds of job."""
        entry = {"seq": seq, **job_entry(job)}
        if job.kind != "evaluate":
            self._optuna.set_study_user_attr(self._id, _side_key(job), entry)
            return
        self._distributions = self._distributions or distributions(space)
        template = FrozenTrial(
            number=-1, trial_id=-1, state=TrialState.RUNNING, value=None, datetime_start=datetime.now(),
            datetime_complete=None, params=dict(job.config), distributions=self._distributions,
            user_attrs={"moopt:issue": entry, "moopt:known": dict(known)}, system_attrs={}, intermediate_values={},
        )  # fmt: skip
        trial_id = self._optuna.create_new_trial(self._id, template)
        self._trial_ids[job.trial] = trial_id

    def finish(self, event: Event, trial: Trial | None, objectives: list[Objective]) -> None:
        """Store what came of a job. The attributes first, the state last, in one piece where the storage can."""
        assert event.outcome is not None
        result = {"seq": event.seq, "seconds": event.seconds, "tokens": event.tokens, **outcome_entry(event.outcome)}
        with self._storage.together():
            if trial is None:
                if event.job.kind == "measure" and isinstance(event.outcome, Evaluation):
                    key = f"moopt:measure:{event.job.trial}:{event.job.fidelity.batch}"
                    self._optuna.set_study_user_attr(self._id, key, outcome_entry(event.outcome))
                entry = {**self._side(event.job), "result": result}
                self._optuna.set_study_user_attr(self._id, _side_key(event.job), entry)
                return
            trial_id = self._trial_ids[trial.number]
            self._optuna.set_trial_user_attr(trial_id, "moopt:result", result)
            if trial.state == "complete":
                for name, violation in trial.violations.items():
                    self._optuna.set_trial_system_attr(trial_id, f"constraints:{name}", violation)
                values = [trial.values[o.name] for o in objectives]
                self._optuna.set_trial_state_values(trial_id, TrialState.COMPLETE, values)
            else:
                assert trial.failure is not None
                self._optuna.set_trial_user_attr(trial_id, "fail_reason", trial.failure.message)
                self._optuna.set_trial_state_values(trial_id, TrialState.FAIL)

    def attempt(self, trial: Trial) -> None:
        """Store that a trial is tried once more."""
        self._optuna.set_trial_user_attr(self._trial_ids[trial.number], "moopt:attempts", trial.attempts)

    def history(self) -> History:
        """Everything stored, as it stands."""
        meta = self.meta
        objectives = [Objective(**entry) for entry in meta["objectives"]]
        constraints = [Constraint(**entry) for entry in meta["constraints"]]
        history = History(self.name, objectives, constraints, meta)
        for frozen in self._optuna.get_all_trials(self._id, deepcopy=False):
            self._trial_ids[frozen.number] = frozen._trial_id
            trial, events = stored_trial(frozen, objectives)
            history.trials.append(trial)
            history.events += events
        for key, entry in self._optuna.get_study_user_attrs(self._id).items():
            if key.startswith("moopt:job:"):
                job = stored_job(entry, history.trials[entry["trial"]].config if entry["trial"] >= 0 else {})
                history.events.append(Event(entry["seq"], job))
                if "result" in entry:
                    history.events.append(told(job, entry["result"]))
            elif key.startswith("moopt:measure:"):
                number, purpose = key.removeprefix("moopt:measure:").split(":", 1)
                outcome = stored_outcome(entry)
                assert isinstance(outcome, Evaluation)
                history.measures[int(number), purpose] = outcome
        history.events.sort(key=lambda event: (event.seq, event.job.trial))
        return history

    def _side(self, job: Job) -> dict[str, Any]:
        return dict(self._optuna.get_study_user_attrs(self._id)[_side_key(job)])


def _side_key(job: Job) -> str:
    return f"moopt:job:{job.kind}:{job.trial}:{job.fidelity.tokens}:{job.fidelity.batch}"


def _check_journal(path: Path) -> None:
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


def _opened(connect: Any, location: object) -> Any:
    try:
        return connect()
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"Cannot open {location}: {error.strerror}.") from error
    except ImportError as error:
        raise StorageError(f"Cannot open {location}: {error}. Install the database's driver.") from error
    except Exception as error:
        raise StorageError(f"{location} is not a moopt storage: {type(error).__name__}: {error}") from error
