"""A study on several workers: one truth, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moopt
from moopt.algorithms import NSGA2, Random
from moopt.cli import app
from moopt.errors import ExecutorError, NotPortable, StudyError, WorkerError
from moopt.jobs import Job
from moopt.logs import JsonLines, lines
from moopt.problem import Evaluation
from moopt.testing.algorithms import drive
from moopt.testing.landscapes import LEVELS, Landscape, Misbehaving


def states(study: moopt.Study) -> list[str]:
    return [trial.state for trial in study.history.trials]


class Drill(Misbehaving):
    def __init__(self, *acts: str) -> None:
        super().__init__()
        self.acts = acts

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"{n} {act}": {"act": act, "n": n} for n, act in enumerate(self.acts)}


def test_several_workers_find_what_one_finds_among_the_same_candidates():
    problem = Drill(*["fine"] * 20)
    alone, together = (moopt.Study("s", problem, Random()).run(20, workers=n) for n in (1, 2))
    assert together.front().drop(columns="seconds").equals(alone.front().drop(columns="seconds"))


def test_no_candidate_is_tried_twice_while_others_are_pending():
    history = moopt.Study("s", Landscape(), NSGA2(8)).run(60, workers=3).history
    assert len({LEVELS.key(trial.config) for trial in history.trials}) == 60


def test_the_log_of_several_workers_replays_to_the_same_state(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    moopt.Study("s", Landscape(), NSGA2(8), path, seed=1).run(40, workers=3)
    resumed = moopt.Study("s", Landscape(), NSGA2(8), path, seed=1).run(50)
    assert len({LEVELS.key(trial.config) for trial in resumed.history.trials}) == 50
    assert states(resumed) == ["complete"] * 50


def test_what_kills_its_worker_is_tried_again_and_then_failed_with_its_reason():
    study = moopt.Study("s", Drill("fine", "kill", "raise", "fine"), Random()).run(4, workers=2, retries=2)
    assert states(study) == ["complete", "failed", "failed", "complete"]
    killed, raised = study.history.trials[1:3]
    assert (killed.attempts, raised.attempts) == (3, 3)
    assert killed.failure is not None
    assert killed.failure.kind == "killed"
    assert "SIGKILL" in killed.failure.message
    assert "the last thing it said" in killed.failure.traceback
    assert raised.failure is not None
    assert "ArithmeticError: nothing adds up" in raised.failure.traceback


def test_a_timeout_alone_asks_for_a_worker_that_can_be_stopped():
    study = moopt.Study("s", Drill("hang", "fine"), Random()).run(2, timeout=2, retries=0)
    assert states(study) == ["failed", "complete"]
    assert study.history.trials[0].failure.kind == "timeout"  # type: ignore[union-attr]


def test_a_timeout_is_not_forgotten_where_the_problem_cannot_leave_this_process():
    class Local(Landscape):
        pass

    with pytest.raises(NotPortable, match="Local"):
        moopt.Study("s", Local(), Random()).run(2, timeout=5)


class Loading(Landscape):
    def setup(self, resources: moopt.Resources) -> None:
        time.sleep(0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_seconds_of_a_trial_are_those_of_its_evaluation(workers: int):
    history = moopt.Study("s", Loading(), Random()).run(3, workers=workers).history
    assert all(0 < trial.seconds < 0.5 for trial in history.trials)


class Nested(Landscape):
    """Runs a study to evaluate a candidate."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> Evaluation:
        inner = moopt.Study("inner", Landscape(), Random()).run(2)
        return Evaluation(inner.history.trials[1].values)


def test_an_evaluation_may_run_a_study_of_its_own():
    assert states(moopt.Study("s", Nested(), Random()).run(2, workers=2)) == ["complete"] * 2


class Once(Landscape):
    """Kills its worker the first time that a candidate is evaluated."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> Evaluation:
        mark = self.folder / str(hash(LEVELS.key(config)))
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(config, fidelity)


def test_a_retry_that_succeeds_is_a_complete_trial_like_any_other(tmp_path: Path):
    study = moopt.Study("s", Once(tmp_path), Random()).run(6, workers=2)
    assert states(study) == ["complete"] * 6
    assert [trial.attempts for trial in study.history.trials] == [2] * 6


@pytest.mark.parametrize("workers", [1, 2])
def test_a_setup_that_fails_ends_the_run_and_leaves_the_study_as_it_was(tmp_path: Path, workers: int):
    path = tmp_path / "moopt.journal"
    with pytest.raises(WorkerError, match="The problem cannot be set up: FileNotFoundError: no such model"):
        moopt.Study("s", Misbehaving(setup="raise"), Random(), path).run(4, workers=workers)
    study = moopt.Study("s", Misbehaving(), Random(), path)
    assert set(states(study)) == {"running"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, StudyError, "workers is 0; expected a whole number from 1"),
        ({"workers": 2, "executor": "inline"}, ExecutorError, "2 workers need executor='processes'"),
        ({"timeout": -1}, StudyError, "timeout is -1"),
        ({"timeout": float("inf")}, StudyError, "timeout is inf; expected seconds above 0"),
        ({"timeout": True}, StudyError, "timeout is True"),
        ({"watch": 5}, StudyError, "watch is 5; expected a function"),
        ({"retries": -1}, StudyError, "retries is -1"),
        ({"executor": "threads"}, ExecutorError, "no executor 'threads'; expected one of inline, processes, ray"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        moopt.Study("s", Landscape(), Random()).run(2, **options)


STUDY = """
import pathlib
import threading
import time
import moopt
from moopt.algorithms import Random
from moopt.testing.landscapes import Landscape

class Slow(Landscape):
    def evaluate(self, config, fidelity):
        if fidelity.batch == 0:
            pathlib.Path({path!r} + ".begun").touch()
            threading.Event().wait({pause})
        return super().evaluate(config, fidelity)

study = moopt.Study("s", Slow(), Random(), {path!r}, seed=1)

if {run}:
    def said(history, event):
        print(event.job.trial, flush=True)

    study.run({trials}, workers={workers}, watch=said)
    print("stopped" if study.stopped else "finished", flush=True)
"""


def script(
    folder: Path, pause: float = 0.2, trials: int = 500, workers: int = 2, run: str = '__name__ == "__main__"'
) -> Path:
    file = folder / "slow_study.py"
    path = str(folder / "moopt.journal")
    file.write_text(STUDY.format(path=path, pause=pause, trials=trials, workers=workers, run=run))
    return file


def start(file: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, file], text=True, env=environment, **pipes)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_finishes_what_runs_and_stores_it(tmp_path: Path, workers: int):
    with start(script(tmp_path, workers=workers)) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped"
    assert "Interrupt again to stop now" in err
    history = moopt.load_history(tmp_path / "moopt.journal")
    *before, last = history.trials
    assert {trial.state for trial in before} == {"complete"}
    assert last.state == "complete" or last.failures <= 0  # it was stored as the interrupt came, and not begun
    assert history.pulse["ended"] == "stopped"


def test_an_interrupt_is_told_to_programs_as_json(tmp_path: Path):
    file = script(tmp_path)
    command = [sys.executable, "-m", "moopt.cli", "run", str(file), "--trials", "500", "--log-json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=environment) as process:
        while not (tmp_path / "moopt.journal.begun").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    said = [json.loads(line) for line in err.splitlines()]
    assert any(line["message"].startswith("Stopping: ") for line in said)
    assert process.returncode == 130


def test_a_second_interrupt_stops_now_and_loses_only_what_was_in_flight(tmp_path: Path):
    with start(script(tmp_path, pause=1000)) as process:
        path = tmp_path / "moopt.journal"
        while not Path(f"{path}.begun").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("Interrupt again" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode != 0
    assert {trial.state for trial in moopt.load_history(path).trials} == {"running"}


def test_a_file_that_runs_its_study_when_it_is_imported_is_told_what_to_do(tmp_path: Path):
    with start(script(tmp_path, run="True")) as process:
        _, err = process.communicate()
    assert process.returncode != 0
    assert 'if __name__ == "__main__":' in err


def test_a_script_from_standard_input_runs_in_one_process(tmp_path: Path):
    text = script(tmp_path, pause=0, trials=3).read_text()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run(
        [sys.executable, "-"], input=text, text=True, env=environment, capture_output=True, check=False
    )
    assert ran.stdout.splitlines()[-1] == "finished"
    assert "one candidate is evaluated at a time" in ran.stderr


def test_the_stored_study_shows_what_its_workers_do(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    seen = []
    study = moopt.Study("s", Landscape(), Random(), path)
    study.run(6, workers=2, watch=lambda history, event: seen.append(moopt.load_history(path)))
    assert seen[0].pulse["process"] == os.getpid()
    assert [worker.name for worker in study.history.workers] == []
    assert study.history.pulse["ended"] == "finished"


def test_an_inline_candidate_that_keeps_ending_the_process_is_given_up(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    code = f"""
import moopt
from moopt.algorithms import Random
from tests_drill import Drill
moopt.Study("s", Drill("fine", "kill", "fine"), Random(), {str(path)!r}).run(3)
"""
    (tmp_path / "tests_drill.py").write_text(
        "from moopt.testing.landscapes import Misbehaving\n"
        "class Drill(Misbehaving):\n"
        "    def __init__(self, *acts): super().__init__(); self.acts = acts\n"
        "    def baselines(self): return {f'{n} {a}': {'act': a, 'n': n} for n, a in enumerate(self.acts)}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])}
    codes = [subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    trials = moopt.load_history(path).trials
    assert [trial.state for trial in trials] == ["complete", "failed", "complete"]
    assert trials[1].failure is not None
    assert trials[1].failure.kind == "quarantined"


def test_pending_candidates_are_known_to_every_algorithm():
    """`drive` with several workers is what a run with several workers does."""
    assert len(drive(NSGA2(6), Landscape(), 20, workers=4)) > 20


def test_the_log_for_programs_is_one_json_object_a_line(capsys: pytest.CaptureFixture[str]):
    with lines(JsonLines()):
        moopt.Study("s", Drill("fine", "raise"), Random()).run(2, workers=2, retries=0)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    ended = {line["trial"]: line for line in said if "trial" in line}
    assert ended[0]["state"] == "complete"
    assert ended[0]["values"] == {"loss": 1.0, "n": 0.0}
    assert ended[1]["state"] == "failed"
    assert "nothing adds up" in ended[1]["message"]
    assert all(line["time"] and line["level"] for line in said)


def test_status_tells_what_each_worker_does(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    with start(script(tmp_path, pause=1000)) as process:
        while "evaluating" not in (said := status(path)):
            pass
        process.kill()
        process.communicate()
    assert f"running, process {process.pid}" in said
    assert "worker 0" in said
    assert "worker 1" in said


def test_status_tells_a_long_evaluation_from_a_run_that_was_killed(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    with start(script(tmp_path, pause=1000, workers=1)) as process:
        while not Path(f"{path}.begun").exists():
            time.sleep(0.02)
        assert f"running, process {process.pid}" in (said := status(path))
        assert "Under way: evaluating trial 0." in said
        process.kill()
        process.communicate()
    assert "not running" in (said := status(path))
    assert "was killed, or its machine went down" in said


def status(path: Path) -> str:
    return CliRunner().invoke(app, ["status", str(path)]).stdout


class Timed(Landscape):
    """Tells when it evaluated, by the clock that all processes of a machine share."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> Evaluation:
        began = time.monotonic()
        found = super().evaluate(config, fidelity)
        time.sleep(0.02)
        return Evaluation(found.values, attributes={"began": began, "ended": time.monotonic()})


class Now(Random):
    """Asks for some of its candidates to be evaluated alone."""

    def ask(self, n: int) -> list[Job]:
        return [replace(job, exclusive=job.trial % 3 == 0) for job in super().ask(n)]


def test_an_exclusive_job_runs_alone():
    history = moopt.Study("s", Timed(), Now()).run(18, workers=3).history
    spans = {t.number: t.evaluation.attributes for t in history.trials if t.evaluation}
    assert len(spans) == 18
    for alone in range(0, 18, 3):
        for other in spans.keys() - {alone}:
            apart = spans[other]["ended"] <= spans[alone]["began"] or spans[alone]["ended"] <= spans[other]["began"]
            assert apart
