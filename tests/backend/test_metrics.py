"""A user's own objectives: callables and commands, and what is said when they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moopt.backend.metrics import CallableMetric, CommandMetric
from moopt.errors import MetricError
from tests.backend.conftest import make_model

LOADS = "import sys, json; from transformers import AutoModelForCausalLM as M; m = M.from_pretrained(sys.argv[1]); "


def command(code: str) -> str:
    return f'{sys.executable} -c "{code}" {{model}}'


def test_a_command_is_given_a_folder_that_loads(byte_tokenizer: Any) -> None:
    code = LOADS + "print(json.dumps({'found': {'layers': m.config.num_hidden_layers}}))"
    metric = CommandMetric("layers", command(code), "json:found.layers")
    assert metric.measure(make_model("llama"), byte_tokenizer) == 2


@pytest.mark.parametrize(
    ("code", "metric", "message"),
    [
        ("import sys; sys.exit('went wrong')", "last", "exit code 1:\nwent wrong"),
        ("pass", "last", "printed nothing"),
        ("print('{}')", "json:score", "printed no 'json:score'"),
        ("print('nan')", "last", "gave nan; expected a finite number"),
        ("print('good')", "last", "gave 'good'; expected a number"),
        ("import time; time.sleep(30)", "last", "ran longer than"),
    ],
)
def test_a_failing_command_says_why(code: str, metric: str, message: str) -> None:
    limit = 1.0 if "sleep" in code else 60.0
    with pytest.raises(MetricError, match=message):
        CommandMetric("score", command(code), metric, timeout=limit).measure(make_model("llama"), None)


def test_a_command_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(MetricError, match=r"lacks \{model\}"):
        CommandMetric("score", "python eval.py")
    with pytest.raises(MetricError, match="expected 'json:KEY' or 'last'"):
        CommandMetric("score", "python eval.py {model}", "yaml:score")
    with pytest.raises(MetricError, match="cannot be run"):
        CommandMetric("score", "no-such-program {model}").measure(make_model("llama"), None)


def test_a_callable_gets_the_model() -> None:
    assert CallableMetric("layers", lambda m: m.config.num_hidden_layers).measure(make_model("llama"), None) == 2
    with pytest.raises(MetricError, match="gave inf"):
        CallableMetric("bad", lambda m: float("inf")).measure(make_model("llama"), None)


def test_what_a_command_started_ends_with_its_time(tmp_path: Path) -> None:
    slow = f"sh -c 'sleep 1000 & echo $! > {tmp_path}/pid; wait # {{model}}'"
    with pytest.raises(MetricError, match="ran longer than"):
        CommandMetric("score", slow, timeout=0.5).measure(make_model("llama"), None)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_killed_evaluation_leaves_neither_its_command_nor_its_folder(tmp_path: Path) -> None:
    slow = f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000 # {{model}}'"
    code = f"""
import pathlib
from moopt.backend.metrics import CommandMetric
class Model:
    def save_pretrained(self, folder): (pathlib.Path(folder) / "weights").touch()
CommandMetric("score", {slow!r}).measure(Model(), None)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as evaluation:
        while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text()):
            time.sleep(0.02)
        assert list(tmp_path.glob("moopt-candidate-*/weights"))
        evaluation.kill()
    assert gone(int(pid))
    deadline = time.monotonic() + 60
    while list(tmp_path.glob("moopt-candidate-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list(tmp_path.glob("moopt-candidate-*"))


def test_an_interrupt_of_the_terminal_does_not_reach_the_command(tmp_path: Path) -> None:
    told = f"{sys.executable} -c 'import os; print(os.getsid(0))' {{model}}"
    assert CommandMetric("session", told).measure(make_model("llama"), None) != os.getsid(0)


def gone(pid: int) -> bool:
    """Whether a process ends, or has."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_no_folder_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    CommandMetric("one", command("print(1)")).measure(make_model("llama"), None)
    assert list(tmp_path.iterdir()) == []
