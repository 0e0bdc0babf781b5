import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from moopt.errors import NotPortable, WorkerError
from moopt.executors import pool
from moopt.executors.placement import places
from moopt.executors.processes import ProcessExecutor
from moopt.problem import Evaluation, Fidelity, Problem, Resources
from moopt.space import Config
from moopt.testing.executors import PATIENCE, IsolatedExecutorSuite, evaluation, failure, job, values
from moopt.testing.landscapes import Misbehaving


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


class Meddling(Misbehaving):
    """Writes to the coordinator itself."""

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        if config["n"] == 0:
            for descriptor in range(3, 4096):  # as many as whoever runs the tests has open
                with contextlib.suppress(OSError, ValueError):
                    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                        connection = Connection(os.dup(descriptor))
                        connection.send(("done", 99, Evaluation({"loss": -1.0})))  # of a job that there never was
                        connection.send(("greetings",))
            threading.Event().wait()
        return super().evaluate(config, fidelity)


def test_a_message_that_nobody_expects_ends_its_worker_alone():
    executor = ProcessExecutor(Meddling(), Resources(), 1)
    outcome = failure(executor.submit(job(0)).result(PATIENCE))
    assert (outcome.kind, outcome.message) == ("contract", "The worker said 'greetings', which nobody asked for.")
    assert values(executor.submit(job(1)).result(PATIENCE)) == {"loss": 0.5}
    executor.close()


class Stuck(Misbehaving):
    def setup(self, resources: Resources) -> None:
        threading.Event().wait()


def test_a_setup_that_takes_long_is_told_and_given_up_where_there_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(pool, "PATIENCE", 0.2)
    monkeypatch.setattr(pool, "SETUP", 0.6)
    executor = ProcessExecutor(Stuck(), Resources(), 2, timeout=0.1)
    with pytest.raises(WorkerError, match="Setting the problem up took more than"):
        executor.submit(job(0)).result(PATIENCE)
    executor.close()
    assert "worker 0 has been setting the problem up for" in caplog.text
    assert "Going on with 1 worker." in caplog.text


@pytest.mark.parametrize("timeout", [1e7, 1e300])
def test_a_timeout_may_be_longer_than_clocks_wait(timeout: float):
    executor = ProcessExecutor(Misbehaving(), Resources(), 1, timeout)
    assert values(executor.submit(job(1)).result(PATIENCE)) == {"loss": 0.5}
    executor.close()


PROGRAM = """
import subprocess
from moopt.executors.processes import ProcessExecutor
from moopt.problem import Resources
from moopt.testing.executors import job
from moopt.testing.landscapes import Misbehaving

class Starting(Misbehaving):
    def evaluate(self, config, fidelity):
        subprocess.run(["sh", "-c", "echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000"])

if __name__ == "__main__":
    ProcessExecutor(Starting(), Resources(), 1).submit(job(0)).result()
"""


def test_what_an_evaluation_started_ends_with_a_coordinator_that_is_killed(tmp_path: Path):
    script, pid = tmp_path / "program.py", tmp_path / "pid"
    script.write_text(PROGRAM.format(pid=pid))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, script], env=environment) as coordinator:
        while not pid.exists():
            time.sleep(0.02)
        coordinator.kill()
    deadline = time.monotonic() + PATIENCE
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(pid.read_text()))


COORDINATOR = """
import sys
from moopt.executors.processes import ProcessExecutor
from moopt.problem import Resources
from moopt.testing.executors import job
from moopt.testing.landscapes import Misbehaving

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
