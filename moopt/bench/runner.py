"""Runs the searches of races, each once: what is finished is stored, and a stopped bench goes on from there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from moopt.bench import units
from moopt.bench.races import HasTruth, Race
from moopt.bench.searchers import Searcher, check, searcher, taken
from moopt.bench.units import Unit
from moopt.errors import StudyError
from moopt.executors.placement import THREADS
from moopt.jobs import Failure, Job, perform
from moopt.problem import Problem

Watch = Callable[[Unit, int, int], None]
"""Told of each unit that has just been stored, the number of those that are, and of all."""


def run(races: Sequence[Race], folder: Path, workers: int = 1, watch: Watch | None = None) -> list[Unit]:
    """Every unit of the races, from the folder where it is there, else searched now and stored; low seeds first.

    Args:
        races: What to run.
        folder: Where units are stored.
        workers: Processes that search at a time, one thread each; 1 searches in this process, with its threads.
        watch: Told of every unit that is done.

    Raises:
        AlgorithmError: there is no algorithm of a name.
        StudyError: the folder has units of another problem under a race's name, or an evaluation failed.
    """
    for name in {name for race in races for name in race.algorithms}:
        check(name)
    every = [(race, algorithm, seed) for race in races for algorithm in race.algorithms for seed in race.seeds]
    todo = sorted((each for each in every if not _stored(folder, *each)), key=lambda each: each[2])
    for done, unit in enumerate(_searched(todo, workers), len(every) - len(todo) + 1):
        units.save(folder, unit)
        if watch is not None:
            watch(unit, done, len(every))
    return finished(races, folder)


def finished(races: Iterable[Race], folder: Path) -> list[Unit]:
    """The units of the races that are stored, whoever runs them."""
    found = (
        units.load(folder, race.name, algorithm, seed)
        for race in races for algorithm in race.algorithms for seed in race.seeds
    )  # fmt: skip
    return [unit for unit in found if unit is not None]


def _stored(folder: Path, race: Race, algorithm: str, seed: int) -> bool:
    unit = units.load(folder, race.name, algorithm, seed)
    if unit is not None and unit.identity != race.identity:
        differing = sorted(k for k in race.identity if unit.identity.get(k) != race.identity[k])
        raise StudyError(
            f"{folder} has a race {race.name!r} that differs in {', '.join(differing)}. Give another folder, or delete "
            f"{units.path(folder, race.name, algorithm, seed).parents[1]}."
        )
    return unit is not None


def _searched(todo: Sequence[tuple[Race, str, int]], workers: int) -> Iterator[Unit]:
    if workers == 1:
        for each in todo:
            yield search(*each)
        return
    with _one_thread(), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = [pool.submit(search, *each) for each in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What is in the environment when a child starts: libraries read it when they are imported."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def search(race: Race, algorithm: str, seed: int) -> Unit:
    """One search from its beginning to its end."""
    problem = race.ready(seed)
    one, log = searcher(algorithm, problem, race.evaluations, seed), _Log(problem)
    ends = np.random.default_rng([seed, race.evaluations])
    pending: list[Job] = []
    issued = 0
    while True:
        while issued < race.evaluations and len(pending) < race.pending:
            job = log.asked(one)
            if job is None:
                log.idle += bool(pending)
                break
            issued += cost(problem, job)
            pending.append(job)
        if not pending:
            break
        log.done(one, pending.pop(int(ends.integers(len(pending)))))
    believed = one.believed()
    return Unit(
        race.name, algorithm, seed, race.identity, log.values, log.truth, log.violations, log.spent, log.seconds,
        log.evaluating, log.idle, taken(algorithm, problem, race.evaluations),
        None if believed is None else believed.tolist(), datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def cost(problem: Problem, job: Job) -> int:
    """How many evaluations a job counts as: as many as it costs in forward tokens, and one at least."""
    one = problem.forward_tokens("evaluate", problem.fidelity)
    return max(1, round(problem.forward_tokens(job.kind, job.fidelity) / one)) if one else 1


class _Log:
    """What a search has found and cost so far."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.values: list[list[float]] = []
        self.truth: list[list[float]] = []
        self.violations: list[float] = []
        self.spent: list[int] = []
        self.seconds = self.evaluating = 0.0
        self.idle = self._cost = 0

    def asked(self, searcher: Searcher) -> Job | None:
        began = time.process_time()
        job = searcher.ask()
        self.seconds += time.process_time() - began
        return job

    def done(self, searcher: Searcher, job: Job) -> None:
        """Perform a job, note what it found, and tell."""
        began = time.process_time()
        outcome = perform(self._problem, job)
        evaluated = time.process_time()
        searcher.tell(job, outcome)
        self.evaluating += evaluated - began
        self.seconds += time.process_time() - evaluated
        self._cost += cost(self._problem, job)
        if job.kind != "evaluate":
            return
        if isinstance(outcome, Failure):
            raise StudyError(f"An evaluation of a benchmark failed: {outcome.message}")
        known = self._problem.known(job.config)
        found = {**known, **outcome.values}
        true = found
        if isinstance(self._problem, HasTruth):
            true = {**known, **self._problem.truth(job.config, job.fidelity).values}
        signs = [(o.name, o.sign) for o in self._problem.objectives]
        self.values.append([sign * found[name] for name, sign in signs])
        self.truth.append([sign * true[name] for name, sign in signs])
        self.violations.append(sum(max(found[c.name] - c.bound, 0.0) for c in self._problem.constraints))
        self.spent.append(self._cost)
