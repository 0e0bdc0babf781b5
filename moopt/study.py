"""Study: a problem, an algorithm and a storage, what users hold in their hands. The coordinator does the running."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pandas as pd

from moopt import algorithms, checks, executors, identity, never_worse
from moopt.algorithms import Algorithm, Suggestion
from moopt.algorithms.opening import Opening
from moopt.coordinator import Coordinator, Watcher, measurements
from moopt.errors import NotPortable, StorageError, StudyError
from moopt.executors import Executor
from moopt.history import History, Trial
from moopt.logs import announce
from moopt.preference import Preference
from moopt.problem import Problem, Resources
from moopt.stopping import Stop
from moopt.storage import Storage, StoredStudy

if TYPE_CHECKING:
    from moopt.algorithms.budgeted import Budgets
    from moopt.exporting import Exported

logger = logging.getLogger("moopt")


class Study:
    """A search for the Pareto front of a problem. Run it again and it goes on where it stopped.

    Args:
        name: What the study is called in its storage.
        problem: What to search.
        algorithm: A name from `moopt.algorithms.NAMES`, an algorithm, or "auto": what the stored study began with, or
            what `moopt.algorithms.suggest` names for a new one.
        storage: A path, a database URL, or None to keep everything in memory.
        seed: The same seed gives the same trials.
        resources: The device and threads evaluations may use.
        preference: The region of the objectives to search; None: all of it.
        budgets: Upper bounds on known objectives to find the best candidate within, such as {"size_mb": [80, 88]};
            None: the whole front. For "auto", and algorithms by name that search at budgets.

    Attributes:
        asked: The algorithm as it was given.
        suggestion: What "auto" took and why; None until it is decided, and where an algorithm was named.
        stopped: Whether the last run was interrupted.
        reached: Which limit other than `trials` the last run reached, in words; None if it was none.
        began: Whether the last run got as far as its first job: what went wrong then is not how it was called.

    Raises:
        ProblemError: the problem breaks its contract.
        CapabilityError: the algorithm needs something the problem does not offer.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        algorithm: str | Algorithm = "auto",
        storage: str | os.PathLike[str] | None = None,
        seed: int = 0,
        resources: Resources | None = None,
        preference: Preference | None = None,
        budgets: Budgets = None,
    ) -> None:
        checks.name(name)
        checks.problem(problem)
        self.name, self.problem, self.seed = name, problem, checks.whole("seed", seed, 0)
        self.preference, self.budgets, self.asked = preference, budgets, algorithm
        self.suggestion: Suggestion | None = None
        self._algorithm: Algorithm | None = None
        if algorithm == "auto" and budgets is not None:
            self.settle()
        elif algorithm != "auto":
            if budgets is not None and not isinstance(algorithm, str):
                raise StudyError(f"Got budgets beside {type(algorithm).__name__}(...); give them to it, or its name.")
            self._algorithm = algorithms.create(algorithm, budgets) if isinstance(algorithm, str) else algorithm
            checks.algorithm(self._algorithm, problem)
        if not isinstance(preference, Preference | None):
            raise StudyError(f"The preference is {preference!r}; expected a moopt.Preference, or None.")
        if not isinstance(resources, Resources | None):
            raise StudyError(f"The resources are {resources!r}; expected moopt.Resources, such as Resources('cpu').")
        self.resources = resources or Resources()
        self.storage = Storage(storage)
        self._history: History | None = None
        self._version: object = None
        self._runs = False
        self.stopped = self.began = False
        self.reached: str | None = None

    @property
    def algorithm(self) -> Algorithm:
        """What searches."""
        if self._algorithm is None:
            self.settle()
        assert self._algorithm is not None
        return self._algorithm

    def settle(self, trials: int | None = None) -> Suggestion | None:
        """Decide what searches, where that was left to "auto"; `run` does so by itself.

        Args:
            trials: How many trials there will be; None if that is not known.
        """
        if self.asked != "auto":
            return None
        bounded = self.budgets is not None
        found = (None if bounded else self._begun()) or algorithms.suggest(self.problem, trials, bounded)
        if self.suggestion is None or self.suggestion.name != found.name:
            self.suggestion, self._algorithm = found, algorithms.create(found.name, self.budgets)
            checks.algorithm(self._algorithm, self.problem)
            logger.info("auto takes %s: %s.", found.name, found.reason)
        return self.suggestion

    def run(
        self,
        trials: int | None = None,
        workers: int = 1,
        executor: str | None = None,
        timeout: float | None = None,
        retries: int = 1,
        watch: Watcher | None = None,
        seconds: float | None = None,
        tokens: int | None = None,
        hypervolume: float | None = None,
        patience: int | None = None,
    ) -> Study:
        """Search until `trials` trials are finished, or another limit is reached; then measure the front on other data.

        Of a problem with validation data, points of the front that lose to a baseline there are replaced by it first:
        see `moopt.never_worse`.

        Ctrl-C (or SIGTERM) once lets what runs end and stores it; `stopped` is then true. Twice stops at once.

        Args:
            trials: Trials in total, those of earlier runs and the baselines included.
            workers: How many candidates are evaluated at a time.
            executor: Where: "inline" (this process), "processes" (of this machine), "ray" (a cluster), or a plug-in's.
                None: processes if there are several workers or a timeout, else inline.
            timeout: Seconds an evaluation may take before it is stopped and counts as failed.
            retries: How often a failed job is tried again on a fresh worker. The inline executor has none.
            watch: Called with the history and the event after every stored event.
            seconds: Seconds of this run after which nothing new begins.
            tokens: Forward tokens in total after which nothing new begins.
            hypervolume: The hypervolume that is enough.
            patience: Trials in a row that may fail, in this run, to raise the hypervolume by more than its noise.

        Raises:
            StudyError: no limit is given or can be reached, or a setting is out of its range.
            StudyMismatch: the storage has a study of that name with another problem, algorithm or seed.
            StorageInUse: another process runs the study.
            ExecutorError: no worker can be started or set up.
        """
        if _PASSIVE.get():
            return self
        stop = Stop(trials, seconds, tokens, hypervolume, patience)
        checks.whole("workers", workers, 1)
        checks.whole("retries", retries, 0)
        checks.seconds("timeout", timeout)
        if watch is not None and not callable(watch):
            raise StudyError(f"watch is {watch!r}; expected a function of the history and the event, or None.")
        self.stopped, self.reached = False, None
        with self._coordinator(self._executor(workers, executor, timeout), retries, watch, trials) as coordinator:
            with _stoppable(coordinator):
                self.reached = coordinator.run(stop)
                for purpose in sorted(self.problem.measurements, key=lambda each: each != never_worse.VALIDATION):
                    coordinator.measure(measurements(self.problem, self._finalists(purpose), purpose))
            self.stopped = coordinator.stopping
        return self

    def measure(self, trial: int, purpose: str) -> Mapping[str, float]:
        """Measure a finished trial for a purpose of the problem, such as "held-out"; stored with the study.

        Raises:
            StudyError: there is no such trial or purpose, or the measurement failed.
        """
        jobs = measurements(self.problem, [self._numbered(trial)], purpose)
        with self._coordinator(self._executor(1, "inline", None), 0, None) as coordinator:
            coordinator.measure(jobs)
        if (trial, purpose) not in self.history.measures:
            failure = self.history.events[-1].outcome
            raise StudyError(f"Trial {trial} could not be measured: {getattr(failure, 'message', 'it was stopped')}")
        return self.history.measures[trial, purpose].values

    @property
    def history(self) -> History:
        """Everything found so far, by whoever runs the study."""
        if self._history is None or not (self._runs or self._version == self.storage.version):
            self._version, self._history = self.storage.version, self._read()
        return self._history

    def trials(self) -> pd.DataFrame:
        """Every trial: state, objectives, constraints, measurements, seconds and tokens."""
        return self.history.frame()

    def front(self) -> pd.DataFrame:
        """The non-dominated feasible trials, baselines in the place of those that lose to them on validation data."""
        return self.history.frame(self.history.front())

    def pick(self, condition: str) -> Trial:
        """The best trial under a bound, such as "size_mb <= 80": see `History.pick`."""
        return self.history.pick(condition)

    def knee(self) -> Trial:
        """The front's point of the best trade-off."""
        return self.history.knee()

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """The volume the front dominates, up to the given, declared or inferred reference point."""
        return self.history.hypervolume(reference)

    def importance(self) -> pd.DataFrame:
        """How much each decision moves each objective, in its unit, around the front: see `moopt.importance`."""
        from moopt.importance import importance

        return importance(self.problem, self.history)

    def show(self, *cards: str) -> None:
        """Show the study's cards below a notebook's cell; elsewhere write them as a page and print its path.

        Args:
            *cards: The names of some, such as "front" or "decisions"; none: all of them.

        Raises:
            ReportError: the study has no card of that name.
        """
        from moopt.report.notebook import show

        show(self.history, cards)

    def export(self, trial: int, format: str, path: str | os.PathLike[str], snap: str | None = None) -> Exported:
        """Write a completed trial's candidate as a folder that a server loads: see `moopt.exporting`.

        Args:
            trial: Its number.
            format: Such as "compressed-tensors"; `moopt.exporting.formats()` has all.
            path: The folder; there must be nothing yet.
            snap: "up" raises what some server of the format does not load to the next option that all do.

        Raises:
            StudyError: there is no such completed trial.
            StudyMismatch: the study was run with another problem.
            ExportError: there is something at the path, no such format, or it cannot hold the candidate.
        """
        from moopt import exporting

        identity.compare_problems(self.name, self.history.meta, self.meta())
        return exporting.export(self.problem, self.history, self._numbered(trial), format, path, snap)

    def meta(self) -> dict[str, Any]:
        """What is stored with the study: its identity, its environment, and what the views need."""
        return identity.meta(self.problem, self.algorithm, self.seed, self.preference)

    def _finalists(self, purpose: str) -> list[Trial]:
        """What is measured at the end: the front and the baselines; on validation data those of them in doubt."""
        if purpose == never_worse.VALIDATION:
            return never_worse.contested(self.history)
        front = self.history.front()
        numbers = {trial.number for trial in front}
        return front + [t for t in self.history.baselines() if t.number not in numbers]

    def _numbered(self, number: int) -> Trial:
        trials = self.history.trials
        checks.whole("trial", number, 0)
        if not 0 <= number < len(trials) or trials[number].state != "complete":
            raise StudyError(f"{self.name!r} has no completed trial {number}; it has {len(trials)} trials.")
        return trials[number]

    def _executor(self, workers: int, name: str | None, timeout: float | None) -> Executor:
        """The executor asked for; inline where the problem cannot leave this process and nobody insists."""
        if worker := os.environ.get("MOOPT_WORKER"):
            raise StudyError(
                f"The study is run while {worker} reads the file that defines its problem; "
                'put the call of run() under: if __name__ == "__main__":'
            )
        chosen = name or ("inline" if workers == 1 and timeout is None else "processes")
        try:
            return executors.create(chosen, self.problem, self.resources, workers, timeout)
        except NotPortable as error:
            if name is not None or timeout is not None:
                raise
            logger.warning("%s Until then one candidate is evaluated at a time, in this process.", error)
            return executors.create("inline", self.problem, self.resources, 1, None)

    @contextmanager
    def _coordinator(
        self, executor: Executor, retries: int, watch: Watcher | None, trials: int | None = None
    ) -> Iterator[Coordinator]:
        coordinator, ended = None, "failed"
        self.began = False
        try:
            self.settle(trials)
            opening = Opening(self.algorithm, self.preference)
            opening.start(self.problem, self.seed)  # what cannot be searched is refused before anything is written
            self.storage.open(own=self.name)
            stored = self._stored()
            stored.begin()
            self._history, self._runs = stored.history(), True
            coordinator = Coordinator(self.problem, opening, self.seed, stored, self._history, executor, retries, watch)
            self.began = True
            yield coordinator
            ended = "stopped" if coordinator.stopping else "finished"
        except KeyboardInterrupt:
            ended = "stopped"
            raise
        finally:
            executor.close()
            if coordinator is not None:
                with suppress(StorageError):
                    coordinator.rest(ended)
            self._version, self._runs = self.storage.version, False
            self.storage.close()

    def _stored(self) -> StoredStudy:
        meta = self.meta()
        stored = self.storage.find(self.name)
        if stored is None:
            return self.storage.create(self.name, list(self.problem.objectives), meta)
        identity.compare(self.name, stored.meta, meta)
        return stored

    def _begun(self) -> Suggestion | None:
        """What the stored study began with; None if there is none, or its algorithm has no name."""
        if not self.storage.exists:
            return None
        self.storage.open()
        stored = self.storage.find(self.name)
        name = None if stored is None else algorithms.name_of(stored.meta["identity"]["algorithm"])
        return None if name is None else Suggestion(name, "the stored study began with it")

    def _read(self) -> History:
        empty = History(self.name, list(self.problem.objectives), list(self.problem.constraints), self.meta())
        if not self.storage.exists:
            return empty
        self.storage.open()
        stored = self.storage.find(self.name)
        return empty if stored is None else stored.history()


_PASSIVE: ContextVar[bool] = ContextVar("passive", default=False)


@contextmanager
def passive() -> Iterator[None]:
    """While open, `Study.run` does nothing: a file that runs its study can be read for what it defines."""
    token = _PASSIVE.set(True)
    try:
        yield
    finally:
        _PASSIVE.reset(token)


@contextmanager
def _stoppable(coordinator: Coordinator) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the coordinator in good order, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not ours to handle
        return

    def handle(number: int, frame: object) -> None:
        if not coordinator.stopping:
            announce("Stopping: what runs is finished and stored first. Interrupt again to stop now.")
        coordinator.interrupt()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_history(storage: str | os.PathLike[str], name: str | None = None) -> History:
    """Read a stored study without its problem, also while it runs elsewhere.

    Raises:
        StorageError: there is no such storage, or it is not moopt's.
        StudyError: it has no study of that name, or several and no name was given.
    """
    opened = Storage(storage)
    opened.open()
    names = opened.studies()
    if not names:
        raise StudyError(f"{opened.shown} has no moopt study in it.")
    if name is None and len(names) > 1:
        raise StudyError(f"{opened.shown} has several studies; name one of {', '.join(names)}.")
    stored = opened.find(name or names[0])
    if stored is None:
        raise StudyError(f"{opened.shown} has no study {name!r}; it has {', '.join(names)}.")
    return stored.history()
