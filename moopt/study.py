"""Study: a problem, an algorithm and a storage, what users hold in their hands. The coordinator does the running."""

from __future__ import annotations

import inspect
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pandas as pd

from moopt import algorithms, executors
from moopt.algorithms import Algorithm, Suggestion
from moopt.algorithms.opening import Opening
from moopt.coordinator import Coordinator, Watcher, measurements
from moopt.errors import (
    AlgorithmError,
    CapabilityError,
    NotPortable,
    ProblemError,
    StorageError,
    StudyError,
    StudyMismatch,
)
from moopt.executors import Executor
from moopt.history import History, Trial
from moopt.preference import Preference
from moopt.problem import CAPABILITIES, Problem, Resources, capabilities
from moopt.space import Space
from moopt.stopping import Stop
from moopt.storage import Storage, StoredStudy

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

    Attributes:
        asked: The algorithm as it was given.
        suggestion: What "auto" took and why; None until it is decided, and where an algorithm was named.
        stopped: Whether the last run was interrupted.
        reached: Which limit other than `trials` the last run reached, in words; None if it was none.

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
    ) -> None:
        if not isinstance(name, str) or not name:
            raise StudyError(f"The study is named {name!r}; expected a non-empty string.")
        if isinstance(problem, type) or not isinstance(problem, Problem):
            hint = f"{problem.__name__}() is one" if isinstance(problem, type) else "subclass moopt.Problem"
            raise ProblemError(f"The problem is {problem!r}; expected a moopt.Problem: {hint}.")
        _check(problem)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise StudyError(f"The seed is {seed!r}; expected a whole number from 0.")
        self.name, self.problem, self.seed, self.preference = name, problem, seed, preference
        self.asked = algorithm
        self.suggestion: Suggestion | None = None
        self._algorithm: Algorithm | None = None
        if algorithm != "auto":
            self._algorithm = algorithms.create(algorithm) if isinstance(algorithm, str) else algorithm
            _require(self._algorithm, problem)
        self.resources = resources or Resources()
        self.storage = Storage(storage)
        self._history: History | None = None
        self._version: object = None
        self._runs = False
        self.stopped = False
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
        found = self._begun() or algorithms.suggest(self.problem, trials)
        if self.suggestion is None or self.suggestion.name != found.name:
            self.suggestion, self._algorithm = found, algorithms.create(found.name)
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
            StudyError: no limit is given, or a setting is out of its range.
            StudyMismatch: the storage has a study of that name with another problem, algorithm or seed.
            StorageInUse: another process runs the study.
            ExecutorError: no worker can be started or set up.
        """
        stop = Stop(trials, seconds, tokens, hypervolume, patience)
        _whole("workers", workers, 1)
        _whole("retries", retries, 0)
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise StudyError(f"timeout is {timeout!r}; expected seconds above 0, or None.")
        self.stopped, self.reached = False, None
        with self._coordinator(self._executor(workers, executor, timeout), retries, watch, trials) as coordinator:
            with _stoppable(coordinator):
                self.reached = coordinator.run(stop)
                for purpose in self.problem.measurements:
                    coordinator.measure(measurements(self.problem, self._finalists(), purpose))
            self.stopped = coordinator.stopping
        return self

    def measure(self, trial: int, purpose: str) -> Mapping[str, float]:
        """Measure a finished trial for a purpose of the problem, such as "held-out"; stored with the study."""
        with self._coordinator(self._executor(1, "inline", None), 0, None) as coordinator:
            coordinator.measure(measurements(self.problem, [self._numbered(trial)], purpose))
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
        """The non-dominated feasible trials."""
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

    def meta(self) -> dict[str, Any]:
        """What is stored with the study: its identity, its environment, and what the views need."""
        fingerprint = self.problem.fingerprint()
        return {
            "version": 1,
            "identity": {
                **fingerprint["identity"],
                "space": self.problem.space.describe(),
                "objectives": [_objective(o) for o in self.problem.objectives],
                "constraints": [vars(c) for c in self.problem.constraints],
                "fidelity": vars(self.problem.fidelity),
                "algorithm": self.algorithm.settings(),
                "seed": self.seed,
                **({} if self.preference is None else {"preference": self.preference.describe()}),
            },
            "environment": {"python": platform.python_version(), **fingerprint["environment"]},
            "objectives": [_objective(o) for o in self.problem.objectives],
            "constraints": [vars(c) for c in self.problem.constraints],
            "decisions": self.problem.decisions(),
            "source": _source(self.problem),
        }

    def _finalists(self) -> list[Trial]:
        """What is measured at the end: the front, and the baselines it is compared with."""
        front = self.history.front()
        numbers = {trial.number for trial in front}
        return front + [t for t in self.history.feasible() if t.label is not None and t.number not in numbers]

    def _numbered(self, number: int) -> Trial:
        trials = self.history.trials
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
            if name is not None:
                raise
            logger.warning("%s Until then one candidate is evaluated at a time, in this process.", error)
            return executors.create("inline", self.problem, self.resources, 1, None)

    @contextmanager
    def _coordinator(
        self, executor: Executor, retries: int, watch: Watcher | None, trials: int | None = None
    ) -> Iterator[Coordinator]:
        coordinator, ended = None, "failed"
        try:
            self.storage.open(own=self.name)
            self.settle(trials)
            opening = Opening(self.algorithm, self.preference)
            opening.start(self.problem, self.seed)  # what cannot be searched is refused before it is stored
            stored = self._stored()
            stored.begin()
            self._history, self._runs = stored.history(), True
            coordinator = Coordinator(self.problem, opening, self.seed, stored, self._history, executor, retries, watch)
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
        compare(self.name, stored.meta, meta)
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


@contextmanager
def _stoppable(coordinator: Coordinator) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the coordinator in good order, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not ours to handle
        return

    def handle(number: int, frame: object) -> None:
        if not coordinator.stopping:
            os.write(2, b"\nStopping: what runs is finished and stored first. Interrupt again to stop now.\n")
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


def compare(name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study of another identity; warn about another environment.

    Raises:
        StudyMismatch: names every entry that differs.
    """
    differing = _differences(stored["identity"], _plain(now["identity"]))
    if differing:
        raise StudyMismatch(
            f"The storage has a study {name!r} that differs: {'; '.join(differing)}. "
            "Give this study another name or another storage, or restore what it was."
        )
    if changed := _differences(stored["environment"], _plain(now["environment"])):
        logger.warning("The environment changed since %r began: %s.", name, "; ".join(changed))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found if len(found) <= 6 else [*found[:6], f"and {len(found) - 6} more"]


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any) -> Any:
    """What JSON makes of it, so that it compares with what was stored."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _objective(objective: Any) -> dict[str, Any]:
    return {k: getattr(objective, k) for k in ("name", "direction", "unit", "known", "reference")}


def _check(problem: Problem) -> None:
    """Refuse a problem that cannot be searched, before anything is stored."""
    kind = type(problem).__name__
    if not isinstance(getattr(problem, "space", None), Space):
        raise ProblemError(f"{kind}.space is {getattr(problem, 'space', None)!r}; expected a moopt.Space.")
    if not problem.objectives:
        raise ProblemError(f"{kind} has no objectives; give at least one moopt.Objective.")
    names = [o.name for o in problem.objectives]
    if len(set(names)) != len(names):
        raise ProblemError(f"{kind} has objectives of one name: {', '.join(names)}.")
    baselines = problem.baselines()
    for name, config in baselines.items():
        valid = problem.space.validate(config)
        lacking = [o.name for o in problem.objectives if o.known and o.name not in problem.known(valid)]
        if lacking:
            raise ProblemError(f"{kind}.known gives no {', '.join(lacking)} for the baseline {name!r}.")


def _require(algorithm: Algorithm, problem: Problem) -> None:
    if not isinstance(algorithm, Algorithm):
        raise AlgorithmError(f"The algorithm is {algorithm!r}; expected a name or an algorithm, such as NSGA2().")
    missing = sorted(algorithm.requires - capabilities(problem))
    if missing:
        what = ", ".join(f"{name} ({(CAPABILITIES[name].__doc__ or '').splitlines()[0]})" for name in missing)
        raise CapabilityError(f"{type(algorithm).__name__} needs what {type(problem).__name__} lacks: {what}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise StudyError(f"{name} is {value!r}; expected a whole number from {least}.")


def _source(problem: Problem) -> str:
    try:
        return f"{inspect.getsourcefile(type(problem))}:{type(problem).__qualname__}"
    except (TypeError, OSError):  # a class of the interpreter's prompt has no file
        return type(problem).__qualname__
