import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moopt.errors import NotPortable
from moopt.executors.placement import places
from moopt.executors.processes import ProcessExecutor
from moopt.problem import Problem, Resources
from moopt.testing.executors import PATIENCE, IsolatedExecutorSuite, evaluation, failure, job
from moopt.testing.problems import Misbehaving


class TestProcesses(IsolatedExecutorSuite):
    def executor(self, problem: Problem, workers: int, timeout: float | None = None) -> ProcessExecutor:
        return ProcessExecutor(problem, Resources(), workers, timeout)


def test_the_end_of_what_a_dead_worker_printed_is_kept():
    executor = ProcessExecutor(Misbehaving(), Resources(), 1)
    outcome = failure(executor.submit(job(0, "kill")).result(PATIENCE))
    executor.close()
    assert "signal 9, SIGKILL" in outcome.message
    assert "the last thing it said" in outcome.traceback


def test_threads_are_divided_and_known_before_the_worker_begins():
    executor = ProcessExecutor(Misbehaving(), Resources(threads=3), 1)
    found = evaluation(executor.submit(job(0)).result(PATIENCE))
    executor.close()
    assert found.attributes["threads"] == 3
    assert {p.environment["OMP_NUM_THREADS"] for p in places(10_000, Resources())} == {"1"}


def test_gpus_are_dealt_out_one_a_worker(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    dealt = [p.environment.get("CUDA_VISIBLE_DEVICES") for p in places(3, Resources())]
    assert dealt == ["3", "5", "3"]
    assert places(1, Resources(device="cpu"))[0].environment.get("CUDA_VISIBLE_DEVICES") is None


def test_a_problem_that_cannot_be_pickled_is_refused_at_once():
    problem = Misbehaving()
    problem.secret = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(NotPortable, match="plain values"):
        ProcessExecutor(problem, Resources(), 1)


COORDINATOR = """
import sys
from moopt.executors.processes import ProcessExecutor
from moopt.problem import Resources
from moopt.testing.executors import job
from moopt.testing.problems import Misbehaving

if __name__ == "__main__":
    executor = ProcessExecutor(Misbehaving(), Resources(), 2)
    print(executor.submit(job(0)).result().attributes["pid"], flush=True)
    executor.submit(job(1, "hang"))
    executor.submit(job(2, "hang"))
    print(*[w.place.rsplit(" ", 1)[1] for w in executor.workers()], flush=True)
    executor.submit(job(3)).result()
"""


def test_no_worker_outlives_a_coordinator_that_is_killed(tmp_path: Path):
    script = tmp_path / "coordinator.py"
    script.write_text(COORDINATOR)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as coordinator:
        assert coordinator.stdout is not None
        coordinator.stdout.readline()
        workers = [int(pid) for pid in coordinator.stdout.readline().split()]
        assert all(alive(pid) for pid in workers)
        coordinator.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
