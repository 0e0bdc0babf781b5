"""Trials <-> an Optuna storage: an embedded journal file by default, memory, or a database by URL.

What is stored reads well in Optuna itself: parameters with their true values, objectives as values under their names,
constraints as Optuna's constraints. moopt's own entries start with "moopt:".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moopt.errors import StorageError, StudyError
from moopt.history import Event, History, Trial
from moopt.jobs import SIZING, Job
from moopt.problem import Constraint, Evaluation, Objective
from moopt.records import (
    RUNG,
    Distributions,
    Parameters,
    distributions,
    job_entry,
    outcome_entry,
    stored_outcome,
    stored_side,
    stored_trial,
    stored_worker,
)
from moopt.space import Space


class Place(Protocol):
    """Where an Optuna storage is, and what differs between such places.

    Attributes:
        shown: How it is named to people: without passwords.
    """

    shown: str

    @property
    def version(self) -> object:
        """Equal as long as nothing was written."""

    @property
    def exists(self) -> bool:
        """Whether there is something to read."""

    def own(self, study: str) -> None:
        """Become the only one who may write a study; before or after `connect`.

        Raises:
            StorageInUse: another process owns it.
            StorageError: it cannot be written.
        """

    def disown(self) -> None:
        """Give up ownership."""

    def runs(self, study: str, host: str, process: int) -> bool | None:
        """Whether a process still owns a study; None where that cannot be seen from here."""

    def connect(self, *, create: bool) -> BaseStorage:
        """The Optuna storage, made if it is missing and `create`.

        Raises:
            StorageError: it cannot be opened.
        """

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write what comes in one piece."""

    def check_room(self) -> None:
        """Refuse to begin what there is no room to store.

        Raises:
            StorageError: there is none.
        """

    def begin(self, study_id: int) -> None:
        """Note that a new owner of a study begins: one that lost its connection meanwhile may not go on."""

    def trials(self, study_id: int) -> list[FrozenTrial]:
        """The trials of a study that moopt wrote, by number; their distributions may be left out."""


class Memory:
    """This process's memory as a place for studies."""

    shown = "memory"
    version = 0
    exists = False

    def own(self, study: str) -> None:
        """Nobody else sees it."""

    def disown(self) -> None:
        """Nobody else sees it."""

    def runs(self, study: str, host: str, process: int) -> bool | None:
        return process == os.getpid()

    def connect(self, *, create: bool) -> BaseStorage:
        self._optuna = InMemoryStorage()
        return self._optuna

    def together(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def check_room(self) -> None:
        """There is, or the process ends."""

    def begin(self, study_id: int) -> None:
        """Nobody else does."""

    def trials(self, study_id: int) -> list[FrozenTrial]:
        return self._optuna.get_all_trials(study_id, deepcopy=False)


class Storage:
    """Where studies are kept. Only its owner writes; anyone may read.

    Args:
        location: A path, a database URL such as "postgresql://...", or None for memory.
    """

    def __init__(self, location: str | os.PathLike[str] | None) -> None:
        self.location = None if location is None else _named(location)
        self.place = _place(self.location)
        self.optuna: BaseStorage | None = None

    @property
    def shown(self) -> str:
        """The location as people may see it: without a password."""
        return self.place.shown

    @property
    def version(self) -> object:
        """Equal as long as nothing was written, where that is cheap to know; else never equal."""
        return self.place.version

    @property
    def exists(self) -> bool:
        """Whether there is something to read."""
        return self.optuna is not None or self.place.exists

    def open(self, *, own: str | None = None) -> None:
        """Connect; with `own` become the only writer of the study of that name.

        Raises:
            StorageInUse: another process owns it.
            StorageError: it cannot be read or written, or is no storage.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            if own is not None:
                self.place.own(own)
            if self.optuna is None:
                self.optuna = _opened(self.place, own is not None)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up ownership. What is stored stays."""
        self.place.disown()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Write what comes in one piece, where the storage can."""
        return self.place.together()

    def studies(self) -> list[str]:
        """The names of the moopt studies in it."""
        assert self.optuna is not None
        return sorted(s.study_name for s in self.optuna.get_all_studies() if "moopt:meta" in s.user_attrs)

    def runs(self, history: History) -> bool | None:
        """Whether the run that last noted how a study stands goes on; None where that cannot be seen from here."""
        pulse = history.pulse
        if not pulse or "ended" in pulse:
            return False
        return self.place.runs(history.name, pulse["host"], pulse["process"])

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
                raise StudyError(f"The study {name!r} in {self.shown} was not written by moopt; use another name.")
        return None

    def _unfinished(self, study_id: int) -> bool:
        """Whether it is what a crash while a study was created leaves: a name and nothing else."""
        assert self.optuna is not None
        attributes = self.optuna.get_study_user_attrs(study_id) or self.optuna.get_study_system_attrs(study_id)
        return not attributes and not self.optuna.get_all_trials(study_id, deepcopy=False)


class StoredStudy:
    """One study in a storage: writes events as they happen, and reads them back as a `History`."""

    def __init__(self, storage: Storage, name: str, study_id: int) -> None:
        assert storage.optuna is not None
        self._storage, self._optuna, self.name, self._id = storage, storage.optuna, name, study_id
        self._trial_ids: dict[int, int] = {}
        self._sides: dict[str, dict[str, Any]] = {}
        self._open: set[int] = set()
        self._distributions = Distributions()

    @property
    def meta(self) -> dict[str, Any]:
        """What the study was created with."""
        return dict(self._optuna.get_study_user_attrs(self._id)["moopt:meta"])

    def begin(self) -> None:
        """Note that a new owner begins: one that lost its connection meanwhile may not go on."""
        self._storage.place.begin(self._id)

    def issue(self, seq: int, job: Job, space: Space, known: Mapping[str, float]) -> None:
        """Store that a job was dispatched: a new trial, an attribute of an open one, or else an entry of the study."""
        entry = {"seq": seq, **job_entry(job)}
        self._storage.place.check_room()
        if job.kind in SIZING and job.trial not in self._trial_ids:
            self._create(job, entry, space, known)
        elif job.kind == "prune":
            with self._storage.together():
                self._optuna.set_trial_user_attr(self._trial_ids[job.trial], _trial_key(job), entry)
                self._optuna.set_trial_state_values(self._trial_ids[job.trial], TrialState.PRUNED)
            self._open.discard(job.trial)
        elif job.trial in self._open and job.kind in SIZING:
            self._optuna.set_trial_user_attr(self._trial_ids[job.trial], _trial_key(job), entry)
        else:
            self._optuna.set_study_user_attr(self._id, _side_key(job), entry)
        if job.kind not in ("evaluate", "prune"):
            self._sides[_side_key(job)] = entry

    def _create(self, job: Job, entry: Mapping[str, Any], space: Space, known: Mapping[str, float]) -> None:
        """A new trial, with its first job."""
        self._distributions = self._distributions or distributions(space)
        template = FrozenTrial(
            number=-1, trial_id=-1, state=TrialState.RUNNING, value=None, datetime_start=datetime.now(),
            datetime_complete=None, params=Parameters(job.config), distributions=self._distributions,
            user_attrs={_trial_key(job): entry, "moopt:known": dict(known)}, system_attrs={}, intermediate_values={},
        )  # fmt: skip
        trial_id = self._optuna.create_new_trial(self._id, template)
        self._trial_ids[job.trial] = trial_id
        self._open.add(job.trial)

    def finish(self, event: Event, trial: Trial | None, objectives: list[Objective]) -> None:
        """Store what came of a job. The attributes first, the state last, in one piece where the storage can."""
        assert event.outcome is not None
        result = {"seq": event.seq, "seconds": event.seconds, "tokens": event.tokens, **outcome_entry(event.outcome)}
        with self._storage.together():
            if trial is None:
                if event.job.kind == "measure" and isinstance(event.outcome, Evaluation):
                    key = f"moopt:measure:{event.job.trial}:{event.job.fidelity.batch}"
                    self._optuna.set_study_user_attr(self._id, key, outcome_entry(event.outcome))
                entry = {**self._sides[_side_key(event.job)], "result": result}
                if event.job.kind == "screen" and event.job.trial in self._open:
                    self._optuna.set_trial_user_attr(self._trial_ids[event.job.trial], _trial_key(event.job), entry)
                else:
                    self._optuna.set_study_user_attr(self._id, _side_key(event.job), entry)
                return
            self._open.discard(trial.number)
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
        tried = {"attempts": trial.attempts, "failures": trial.failures}
        self._optuna.set_trial_user_attr(self._trial_ids[trial.number], "moopt:tried", tried)

    def pulse(self, entry: Mapping[str, Any]) -> None:
        """Store how the run stands, in place of what was noted before."""
        self._optuna.set_study_user_attr(self._id, "moopt:pulse", dict(entry))

    def history(self) -> History:
        """Everything stored, as it stands."""
        meta = self.meta
        objectives = [Objective(**entry) for entry in meta["objectives"]]
        constraints = [Constraint(**entry) for entry in meta["constraints"]]
        history = History(self.name, objectives, constraints, meta)
        for frozen in self._storage.place.trials(self._id):
            self._trial_ids[frozen.number] = frozen._trial_id
            trial, events = stored_trial(frozen, objectives)
            if trial.state == "running":
                self._open.add(trial.number)
            screens = (event for event in events if event.job.kind == "screen" and event.outcome is None)
            self._sides |= {_side_key(e.job): {"seq": e.seq, **job_entry(e.job)} for e in screens}
            history.trials.append(trial)
            history.unbegun += trial.screened
            history.events += events
        for key, entry in self._optuna.get_study_user_attrs(self._id).items():
            if key.startswith("moopt:job:"):
                self._sides[key] = entry
                config = history.trials[entry["trial"]].config if entry["trial"] >= 0 else {}
                history.events += stored_side(entry, config)
            elif key == "moopt:pulse":
                history.workers = [stored_worker(worker) for worker in entry["workers"]]
                history.pulse = {name: value for name, value in entry.items() if name != "workers"}
            elif key.startswith("moopt:measure:"):
                number, purpose = key.removeprefix("moopt:measure:").split(":", 1)
                outcome = stored_outcome(entry)
                assert isinstance(outcome, Evaluation)
                history.measures[int(number), purpose] = outcome
        history.events.sort(key=lambda event: (event.seq, event.job.trial))
        return history


def _side_key(job: Job) -> str:
    return f"moopt:job:{job.kind}:{job.trial}:{job.fidelity.tokens}:{job.fidelity.batch}"


def _trial_key(job: Job) -> str:
    """The attribute of its trial that a job is stored in."""
    if job.kind == "screen":
        return f"{RUNG}{job.fidelity.tokens}:{job.fidelity.batch}"
    return {"evaluate": "moopt:issue", "prune": "moopt:pruned"}[job.kind]


def _named(location: str | os.PathLike[str]) -> str:
    named = os.fspath(location) if isinstance(location, (str, os.PathLike)) else location
    if not isinstance(named, str) or not named or "\0" in named:
        raise StorageError(f"The storage is {location!r}; expected a path, a database URL, or None for memory.")
    return named


def _place(location: str | None) -> Place:
    if location is None:
        return Memory()
    if "://" in location:
        from moopt.databases import Database  # SQLAlchemy takes a while

        return Database(location)
    from moopt.journal import Journal

    return Journal(location)


def _opened(place: Place, create: bool) -> BaseStorage:
    try:
        return place.connect(create=create)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"Cannot open {place.shown}: {error.strerror}.") from error
    except Exception as error:
        raise StorageError(f"{place.shown} is not a moopt storage: {type(error).__name__}: {error}") from error
