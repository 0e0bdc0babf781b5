"""Options that some server does not load, raised to the next that all do: what it costs is measured and said."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import moopt
from moopt.cli import app
from moopt.errors import ExportError
from moopt.problem import Fidelity
from moopt.promises import verify
from moopt_problems import BitAllocation, KVCachePrecision

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 128, "validation": 0, "sensitivities": None,
    "group_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(merging: Path) -> moopt.Study:
    problem = BitAllocation(str(merging), bits=(2, 3, 4, 6, 8), **SMALL)
    return moopt.Study("bits", problem, "random", seed=1).run(trials=9)


@pytest.mark.parametrize(("format", "allowed"), [("compressed-tensors", {4, 8}), ("gguf", {4, 8})])
def test_options_are_raised_and_what_that_costs_is_measured(
    study: moopt.Study, format: str, allowed: set[int], tmp_path: Path
) -> None:
    problem = study.problem
    assert isinstance(problem, BitAllocation)
    trial = next(t for t in study.history.trials if {2, 3, 6} <= set(t.config.values()))
    found = study.export(trial.number, format, tmp_path / "out", snap="up").manifest
    assert set(found["config"].values()) <= allowed
    for name, value in found["config"].items():
        assert value == min(width for width in allowed if width >= trial.config[name])
    assert found["raised"] == {n: [v, found["config"][n]] for n, v in trial.config.items() if v not in allowed}
    wanted = problem.evaluate(found["config"], Fidelity(128, "held-out")).values["kl"]
    assert found["figures"]["kl"] == {"held-out": wanted, "unit": "nats/token", "known": False}
    assert found["figures"]["size_mb"]["search"] == problem.known(found["config"])["size_mb"]
    assert found["notes"][0].startswith(f"{len(found['raised'])} options (")
    assert (
        f"size_mb {trial.values['size_mb']:.6g} -> {problem.known(found['config'])['size_mb']:.6g} MB"
        in found["notes"][0]
    )


def test_raised_candidates_keep_their_promises(study: moopt.Study, tmp_path: Path) -> None:
    trial = next(t for t in study.history.trials if {2, 3, 6} <= set(t.config.values()))
    kept = {each.name: each for each in verify(study.export(trial.number, "gguf", tmp_path / "out", snap="up").path)}
    assert kept["kl"].where == "held-out"
    assert kept["kl"].holds
    assert kept["size"].holds


def test_what_holds_already_stays_as_it_is(study: moopt.Study, tmp_path: Path) -> None:
    trial = next(t for t in study.history.trials if t.label == "uniform-4")
    found = study.export(trial.number, "compressed-tensors", tmp_path / "out", snap="up").manifest
    assert found["raised"] == {}
    assert found["config"] == trial.config
    assert found["figures"]["kl"]["search"] == trial.values["kl"]


def test_what_cannot_be_raised_is_refused(merging: Path, study: moopt.Study, tmp_path: Path) -> None:
    low = moopt.Study("low", BitAllocation(str(merging), bits=(2, 3), **SMALL), "random").run(trials=2)
    for run, format, snap, said in (
        (low, "compressed-tensors", "up", r"0\.q_k_v has 2 and could have 2, 3: none of these that is as large"),
        (study, "moopt", "up", "moopt has nothing to raise"),
        (study, "compressed-tensors", "down", "Got snap='down'; expected 'up'"),
        (study, "gguf", None, "snap='up'"),
    ):
        with pytest.raises(ExportError, match=said):
            run.export(0, format, tmp_path / "out", snap=snap)
    assert not (tmp_path / "out").exists()
    pairs = KVCachePrecision(str(merging), text=textwrap.__file__, tokens=64, context=64, held_out=0, validation=0)
    other = moopt.Study("kv", pairs, "random").run(trials=1)
    with pytest.raises(ExportError, match="decides no weights"):
        other.export(0, "gguf", tmp_path / "out", snap="up")


def test_the_command_says_what_it_costs(merging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {**SMALL, "bits": (2, 4)}
    Path("mine.py").write_text(
        "import moopt\nfrom moopt_problems import BitAllocation\n"
        f"study = moopt.Study('mine', BitAllocation({str(merging)!r}, **{arguments!r}), 'random', 's.journal')\n"
    )
    run = CliRunner()
    assert run.invoke(app, ["run", "mine.py", "--trials", "2"]).exit_code == 0
    told = run.invoke(
        app, ["export", "mine.py", "--trial", "0", "--format", "compressed-tensors", "--out", "out", "--snap", "up"]
    )
    assert told.exit_code == 0, told.output
    assert ") were raised to what vLLM loads" in told.output


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq"])
def test_layers_that_run_as_one_are_raised_together(merging: Path, format: str, tmp_path: Path) -> None:
    how = {**SMALL, "tie": "linear", "quantizer": "rtn-symmetric"}
    problem = BitAllocation(str(merging), bits=(2, 4, 8), **how)
    study = moopt.Study("apart", problem, "random", seed=3).run(trials=4)
    config = study.export(3, format, tmp_path / "out", snap="up").manifest["config"]
    for block in (0, 1):
        assert len({config[f"{block}.{name}"] for name in "qkv"}) == 1
        assert len({config[f"{block}.{name}"] for name in ("gate", "up")}) == 1
    assert len(set(config.values())) > 1
