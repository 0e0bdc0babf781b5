"""What every algorithm must do. Subclass `AlgorithmSuite` in a test module; pytest collects its tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from moopt.algorithms import Algorithm
from moopt.jobs import Job, Outcome, perform
from moopt.problem import Problem
from moopt.testing.landscapes import LEVELS, MIXED, TIED, TINY, Landscape, Tied

Entry = Sequence[Job] | tuple[Job, Outcome]
"""Of a log: a batch that was issued, or one outcome that was told."""


def drive(
    algorithm: Algorithm, problem: Problem, trials: int, seed: int = 0, workers: int = 1,
    watch: Callable[[Algorithm, int], None] = lambda algorithm, entry: None,
) -> list[Entry]:  # fmt: skip
    """Search as a study does, `workers` at a time, and return the log.

    Args:
        algorithm: What asks.
        problem: What is searched, in this process.
        trials: How many jobs are issued at most.
        seed: Given to the algorithm.
        workers: How many jobs are pending at most; the oldest ends first.
        watch: Called before every ask with the algorithm and the length of the log so far.
    """
    algorithm.start(problem, seed)
    log: list[Entry] = []
    pending: list[Job] = []
    issued = 0
    while True:
        watch(algorithm, len(log))
        jobs = algorithm.ask(min(workers - len(pending), trials - issued)) if issued < trials else []
        run = [job for job in jobs if job.kind != "prune"]
        assert len(run) <= workers - len(pending), f"asked for {workers - len(pending)} jobs, got {len(run)}"
        if jobs:
            algorithm.issued(jobs)
            log.append(jobs)
            pending += run
            issued += len(run)
        elif not pending:
            return log
        if not jobs or len(pending) == workers:
            job = pending.pop(0)
            log.append((job, perform(problem, job)))
            algorithm.tell([(job, log[-1][1])])  # type: ignore[list-item]


def replay(algorithm: Algorithm, problem: Problem, log: Sequence[Entry], seed: int = 0) -> Algorithm:
    """Rebuild an algorithm from a log as a storage gives it back: notes have been JSON, and it is never asked."""
    algorithm.start(problem, seed)
    for entry in log:
        if isinstance(entry, tuple):
            job, outcome = entry
            algorithm.tell([(_stored(job), outcome)])
        else:
            algorithm.issued([_stored(job) for job in entry])
    return algorithm


def replays(make: Callable[[], Algorithm], problem: Problem, trials: int, workers: int, every: int) -> None:
    """Assert that asking changes nothing, and that an algorithm rebuilt from part of a log asks the same.

    Args:
        make: A new algorithm, settings equal each time.
        problem: What is searched.
        trials: How many jobs are issued at most.
        workers: How many jobs are pending at most.
        every: It is rebuilt at every so-many-th ask.
    """
    asked: dict[int, list[Job]] = {}

    def note(algorithm: Algorithm, entry: int) -> None:
        asked[entry] = algorithm.ask(2)
        assert algorithm.ask(2) == asked[entry]

    log = drive(make(), problem, trials, workers=workers, watch=note)
    for entry in sorted(asked)[::every]:
        assert replay(make(), problem, log[:entry]).ask(2) == asked[entry], f"after {entry} entries"


def evaluated(log: Sequence[Entry]) -> list[Job]:
    """The evaluations of a log, in the order they were issued."""
    return [job for entry in log if not isinstance(entry, tuple) for job in entry if job.kind == "evaluate"]


def _stored(job: Job) -> Job:
    return replace(job, note=json.loads(json.dumps(dict(job.note))))


class AlgorithmSuite:
    """The contract of an algorithm, as tests.

    ```python
    class TestMine(AlgorithmSuite):
        def algorithm(self) -> Algorithm:
            return Mine(population_size=8)
    ```
    """

    trials = 40
    """How many trials a test runs: enough for the algorithm to leave its opening."""

    problem: type[Landscape] = Landscape
    """Override it where the algorithm requires capabilities that `Landscape` lacks."""

    def algorithm(self) -> Algorithm:
        """A new algorithm, settings equal each time."""
        raise NotImplementedError

    @pytest.mark.parametrize("workers", [1, 3])
    def test_same_seed_same_trials(self, workers: int) -> None:
        first, second = (drive(self.algorithm(), self.problem(MIXED), self.trials, 7, workers) for _ in range(2))
        assert evaluated(first) == evaluated(second)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_asking_changes_nothing(self, workers: int) -> None:
        def ask_often(algorithm: Algorithm, entry: int) -> None:
            assert algorithm.ask(1) == algorithm.ask(1)
            assert algorithm.ask(3) == algorithm.ask(3)

        problem = self.problem(LEVELS, known=True)
        often = drive(self.algorithm(), problem, self.trials, 0, workers, ask_often)
        assert evaluated(often) == evaluated(drive(self.algorithm(), problem, self.trials, 0, workers))

    @pytest.mark.parametrize("workers", [1, 3])
    def test_replayed_to_any_point_asks_the_same(self, workers: int) -> None:
        problem, asked = self.problem(LEVELS, known=True, behaviour="flaky"), dict[int, list[Job]]()

        def note(algorithm: Algorithm, entry: int) -> None:
            asked[entry] = algorithm.ask(2)

        log = drive(self.algorithm(), problem, self.trials, 3, workers, note)
        for entry in sorted(asked)[:: max(1, len(asked) // 12)]:
            assert replay(self.algorithm(), problem, log[:entry], 3).ask(2) == asked[entry], f"after {entry} entries"

    @pytest.mark.parametrize("space", [LEVELS, MIXED], ids=["levels", "mixed"])
    @pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
    def test_candidates_are_new_valid_and_numbered(self, space: object, objectives: int) -> None:
        problem = self.problem(space, objectives)  # type: ignore[arg-type]
        jobs = evaluated(drive(self.algorithm(), problem, self.trials, workers=2))
        assert [job.trial for job in jobs] == list(range(self.trials))
        assert all(job.config == problem.space.validate(job.config) for job in jobs)
        assert len({problem.space.key(job.config) for job in jobs}) == self.trials
        assert all(job.fidelity == problem.fidelity for job in jobs)

    def test_what_is_known_to_be_infeasible_is_never_asked(self) -> None:
        problem = self.problem(LEVELS, known=True, constraint="known")
        jobs = evaluated(drive(self.algorithm(), problem, self.trials))
        assert len(jobs) == self.trials
        assert all(problem.known(job.config)["mean"] <= 0.6 for job in jobs)

    def test_measured_constraints_are_searched_with(self) -> None:
        log = drive(self.algorithm(), self.problem(LEVELS, constraint="measured"), self.trials)
        assert len(evaluated(log)) == self.trials

    @pytest.mark.parametrize("bound", [0.2, -1.0], ids=["a start", "all"])
    def test_it_goes_on_while_nothing_is_feasible(self, bound: float) -> None:
        problem = self.problem(LEVELS, constraint="measured", bound=bound)
        jobs = evaluated(drive(self.algorithm(), problem, self.trials, workers=2))
        assert len({problem.space.key(job.config) for job in jobs}) == self.trials

    def test_what_is_pending_is_not_asked_again_and_may_end_in_any_order(self) -> None:
        problem, algorithm = self.problem(LEVELS), self.algorithm()
        algorithm.start(problem, 0)
        told: list[Job] = []
        pending: list[Job] = []
        for _ in range(self.trials // 4):
            jobs = algorithm.ask(4)
            algorithm.issued(jobs)
            pending += jobs
            keys = [problem.space.key(job.config) for job in told + pending]
            assert len(set(keys)) == len(keys)
            while len(pending) > 4:
                told.append(pending.pop())
                algorithm.tell([(told[-1], perform(problem, told[-1]))])
        assert len(told) + len(pending) == 4 * (self.trials // 4)

    @pytest.mark.parametrize("behaviour", ["constant", "failing", "flaky"])
    def test_it_survives_results_that_say_little(self, behaviour: str) -> None:
        problem = self.problem(LEVELS, behaviour=behaviour)  # type: ignore[arg-type]
        jobs = evaluated(drive(self.algorithm(), problem, self.trials, workers=2))
        assert len({problem.space.key(job.config) for job in jobs}) == self.trials

    @pytest.mark.parametrize("workers", [1, 4])
    def test_a_small_space_is_searched_to_its_end(self, workers: int) -> None:
        problem = self.problem(TINY)
        jobs = evaluated(drive(self.algorithm(), problem, 20, workers=workers))
        assert len(jobs) == len({problem.space.key(job.config) for job in jobs}) == 6

    def test_only_what_is_repaired_is_asked(self) -> None:
        for space, trials in ((LEVELS, self.trials), (TIED, 6)):
            problem = Tied(space)
            jobs = evaluated(drive(self.algorithm(), problem, self.trials, workers=2))
            first, *_, last = space.names
            assert len({space.key(job.config) for job in jobs}) == len(jobs) == trials
            assert all(job.config[first] == job.config[last] for job in jobs)

    def test_start_forgets(self) -> None:
        algorithm = self.algorithm()
        drive(algorithm, self.problem(MIXED), 10)
        again = drive(algorithm, self.problem(LEVELS), self.trials)
        assert evaluated(again) == evaluated(drive(self.algorithm(), self.problem(LEVELS), self.trials))

    def test_settings_are_equal_and_json(self) -> None:
        settings = self.algorithm().settings()
        assert settings == self.algorithm().settings() == json.loads(json.dumps(settings))
