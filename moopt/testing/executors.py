"""What every executor must do. Subclass `ExecutorSuite` in a test module; pytest collects its tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager

import pytest

from moopt.errors import WorkerError
from moopt.executors import Executor
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Problem
from moopt.testing.landscapes import Misbehaving

PATIENCE = 120.0
"""Seconds until a test takes an executor for stuck."""


class ExecutorSuite:
    """Tests of the contract in `moopt.executors.base`. Override `executor`."""

    def executor(self, problem: Problem, workers: int, timeout: float | None = None) -> Executor:
        """An executor of the kind under test; one that runs a single job at a time may ignore `workers`."""
        raise NotImplementedError

    @contextmanager
    def opened(
        self, workers: int = 2, problem: Problem | None = None, timeout: float | None = None
    ) -> Iterator[Executor]:
        """An executor that is closed at the end."""
        executor = self.executor(problem or Misbehaving(), workers, timeout)
        try:
            yield executor
        finally:
            executor.close()

    def test_every_job_ends_with_its_own_outcome(self) -> None:
        with self.opened() as executor:
            futures = [executor.submit(job(n)) for n in range(20)]
            for n, future in enumerate(futures):
                assert values(future.result(PATIENCE)) == {"loss": 1 / (1 + n)}

    def test_the_problem_is_set_up_once_in_each_worker(self) -> None:
        with self.opened() as executor:
            found = [evaluation(executor.submit(job(n)).result(PATIENCE)).attributes for n in range(10)]
        assert {each["setups"] for each in found} == {1}
        assert len({each["pid"] for each in found}) <= executor.capacity

    @pytest.mark.parametrize(
        ("act", "kind", "said"),
        [
            ("raise", "ArithmeticError", "nothing adds up"),
            ("nonsense", "contract", "expected moopt.Evaluation"),
            ("nan", "nonfinite", "nan"),
            ("exit", "SystemExit", "leaving"),
            ("unsendable", "contract", "lock"),
        ],
    )
    def test_what_goes_wrong_in_a_job_is_its_failure(self, act: str, kind: str, said: str) -> None:
        with self.opened() as executor:
            outcome = failure(executor.submit(job(0, act)).result(PATIENCE))
            assert outcome.kind == kind
            assert said in outcome.message
            assert values(executor.submit(job(1)).result(PATIENCE)) == {"loss": 0.5}

    @pytest.mark.filterwarnings("ignore:.*fork")
    def test_what_a_job_forks_answers_no_other_job(self) -> None:
        with self.opened(workers=1) as executor:
            for n in range(4):
                assert values(executor.submit(job(n, "fork")).result(PATIENCE)) == {"loss": 1 / (1 + n)}

    def test_a_talkative_job_does_not_stop_its_worker(self) -> None:
        with self.opened() as executor:
            assert values(executor.submit(job(0, "print")).result(PATIENCE)) == {"loss": 1.0}

    def test_a_setup_that_fails_is_no_failure_of_a_job(self) -> None:
        with (
            self.opened(problem=Misbehaving(setup="raise")) as executor,
            pytest.raises(WorkerError, match="no such model"),
        ):
            executor.submit(job(0)).result(PATIENCE)

    def test_it_tells_what_its_workers_do(self) -> None:
        with self.opened() as executor:
            executor.submit(job(0)).result(PATIENCE)
            executor.submit(job(1, "raise")).result(PATIENCE)
            told = executor.workers()
        if told:
            assert sum(worker.done for worker in told) == 2
            assert sum(worker.failed for worker in told) == 1

    def test_closing_twice_does_nothing(self) -> None:
        executor = self.executor(Misbehaving(), 2)
        executor.submit(job(0)).result(PATIENCE)
        executor.close()
        executor.close()


class IsolatedExecutorSuite(ExecutorSuite):
    """And of executors whose jobs run in other processes."""

    def test_jobs_run_elsewhere_and_at_a_time(self) -> None:
        with self.opened(workers=2) as executor:
            found = [executor.submit(job(n)) for n in range(40)]
            pids = {evaluation(future.result(PATIENCE)).attributes["pid"] for future in found}
        assert os.getpid() not in pids
        assert executor.isolated

    def test_a_worker_that_dies_is_the_failure_of_its_job_alone(self) -> None:
        with self.opened(workers=2) as executor:
            futures = [executor.submit(job(n, "kill" if n == 3 else "fine")) for n in range(12)]
            outcomes = [future.result(PATIENCE) for future in futures]
        assert [isinstance(outcome, Failure) for outcome in outcomes] == [n == 3 for n in range(12)]
        assert failure(outcomes[3]).kind == "killed"

    def test_a_job_that_takes_too_long_is_stopped(self) -> None:
        with self.opened(workers=1, timeout=2.0) as executor:
            outcome = failure(executor.submit(job(0, "hang")).result(PATIENCE))
            assert outcome.kind == "timeout"
            assert values(executor.submit(job(1)).result(PATIENCE)) == {"loss": 0.5}

    def test_a_fresh_job_runs_on_a_worker_that_ran_nothing_before(self) -> None:
        with self.opened(workers=1) as executor:
            before = evaluation(executor.submit(job(0)).result(PATIENCE)).attributes["pid"]
            assert evaluation(executor.submit(job(1)).result(PATIENCE)).attributes["pid"] == before
            assert evaluation(executor.submit(job(2), fresh=True).result(PATIENCE)).attributes["pid"] != before

    def test_a_setup_that_kills_its_worker_ends_the_wait(self) -> None:
        with self.opened(problem=Misbehaving(setup="kill")) as executor, pytest.raises(WorkerError, match="set"):
            executor.submit(job(0)).result(PATIENCE)

    def test_a_job_that_comes_when_no_worker_is_left_does_not_wait(self) -> None:
        with self.opened(problem=Misbehaving(setup="raise")) as executor:
            for n in range(2):
                with pytest.raises(WorkerError, match="no such model"):
                    executor.submit(job(n)).result(PATIENCE)

    def test_many_deaths_in_a_row_are_survived(self) -> None:
        with self.opened(workers=2) as executor:
            outcomes = [executor.submit(job(n, "kill")) for n in range(8)] + [executor.submit(job(8))]
            kinds = [getattr(future.result(PATIENCE), "kind", "fine") for future in outcomes]
        assert kinds == ["killed"] * 8 + ["fine"]

    def test_closing_stops_what_runs(self) -> None:
        executor = self.executor(Misbehaving(), 2)
        future = executor.submit(job(0, "hang"))
        executor.submit(job(1)).result(PATIENCE)
        executor.close()
        assert not wait([future], PATIENCE).not_done


def job(n: int, act: str = "fine") -> Job:
    """An evaluation of `Misbehaving`."""
    return Job(n, {"act": act, "n": n}, fidelity=Misbehaving.fidelity)


def evaluation(outcome: Outcome) -> Evaluation:
    """The outcome, which is expected to be good."""
    assert isinstance(outcome, Evaluation), outcome
    return outcome


def failure(outcome: Outcome) -> Failure:
    """The outcome, which is expected to be bad."""
    assert isinstance(outcome, Failure), outcome
    return outcome


def values(outcome: Outcome) -> dict[str, float]:
    """The values of an outcome that is expected to be good."""
    return dict(evaluation(outcome).values)
