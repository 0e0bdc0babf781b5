"""What was promised of an export, measured again in the program that it is for."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import moopt
from moopt.cli import app
from moopt.errors import ExportError
from moopt.promises import verify
from moopt_problems import BitAllocation, ModelMerge
from tests.backend.exporters.test_exporters import merges  # noqa: F401 - a fixture

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 256, "context": 64, "held_out": 256, "validation": 0, "sensitivities": None,
    "objectives": ("kl", "perplexity", "top1_agreement", "size_mb"),
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tiny: Path) -> moopt.Study:
    problem = BitAllocation(str(tiny), bits=(2, 4, 8), group_size=32, **SMALL)
    return moopt.Study("bits", problem, "random").run(trials=9)


@pytest.fixture(scope="module")
def types(merging: Path) -> moopt.Study:
    problem = BitAllocation(str(merging), target="llama.cpp", bits=("q4_0", "q8_0"), **SMALL)
    return moopt.Study("types", problem, "random").run(trials=3)


@pytest.mark.parametrize("format", ["moopt", "checkpoint", "gguf"])
def test_promises_are_kept_by_the_program_that_it_is_for(
    study: moopt.Study, types: moopt.Study, format: str, tmp_path: Path
) -> None:
    searched = types if format == "gguf" else study
    trial = next(t for t in searched.history.front() if (t.number, "held-out") in searched.history.measures)
    kept = {each.name: each for each in verify(searched.export(trial.number, format, tmp_path / "out").path)}
    assert set(kept) == {"size", "kl", "perplexity", "top1_agreement"}
    assert kept["kl"].where == "held-out"
    assert all(each.holds for each in kept.values()), kept
    assert kept["kl"].found > 0


def test_what_is_not_as_promised_fails(study: moopt.Study, tmp_path: Path) -> None:
    trial = study.history.front()[0]
    found = study.export(trial.number, "moopt", tmp_path / "out")
    assert CliRunner().invoke(app, ["verify", str(found.path)]).exit_code == 0
    manifest = json.loads((found.path / "moopt.json").read_text())
    manifest["figures"]["perplexity"]["held-out"] *= 0.9
    (found.path / "moopt.json").write_text(json.dumps(manifest))
    told = CliRunner().invoke(app, ["verify", str(found.path)])
    assert told.exit_code == 1
    assert "NOT as promised" in told.output
    figures = json.loads(CliRunner().invoke(app, ["verify", str(found.path), "--json"]).output)["figures"]
    assert {each["name"]: each["holds"] for each in figures}["perplexity"] is False
    (found.path / "model.safetensors").write_bytes(b"no")
    told = CliRunner().invoke(app, ["verify", str(found.path)])
    assert told.exit_code == 2


def test_what_was_not_held_out_is_not_called_wrong(study: moopt.Study, tmp_path: Path) -> None:
    trial = next(t for t in study.history.trials if (t.number, "held-out") not in study.history.measures)
    kept = {each.name: each for each in verify(study.export(trial.number, "moopt", tmp_path / "out").path)}
    assert kept["kl"].where == "search"
    assert kept["kl"].holds is None


def test_what_no_program_runs_is_said(merges: moopt.Study, tmp_path: Path) -> None:  # noqa: F811
    assert isinstance(merges.problem, ModelMerge)
    found = merges.export(0, "checkpoint", tmp_path / "out")
    with pytest.raises(ExportError, match="does not say what its figures were compared with"):
        verify(found.path)
