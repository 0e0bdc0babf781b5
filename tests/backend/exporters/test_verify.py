"""What was promised of an export, measured again in the program that it is for."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import moopt
from moopt import exporting
from moopt.cli import app
from moopt.errors import ExportError
from moopt.promises import checked, verify
from moopt_problems import BitAllocation, ModelMerge
from tests.backend.exporters.test_exporters import merges  # noqa: F401 - a fixture

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 256, "context": 64, "held_out": 256, "validation": 0, "sensitivities": None,
    "objectives": ("kl", "perplexity", "top1_agreement", "size_mb"),
}  # fmt: skip


def rewritten(folder: Path, manifest: dict[str, Any]) -> None:
    """An export that promises something else, with the right checksum."""
    manifest.pop("check")
    (folder / "moopt.json").write_text(json.dumps({**manifest, "check": exporting._check(manifest)}))


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
    rewritten(found.path, manifest)
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


def test_what_was_validated_alone_is_shown_and_not_judged(tiny: Path, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(4, 8), group_size=32, **{**SMALL, "held_out": 0, "validation": 128})
    study = moopt.Study("validated", problem, "random").run(trials=3)
    study.history.measures = {k: v for k, v in study.history.measures.items() if k[1] == "validation"}
    kept = {each.name: each for each in verify(study.export(0, "moopt", tmp_path / "out").path)}
    assert kept["kl"].where in ("validation", "search")
    assert kept["kl"].holds is None


def test_what_was_altered_or_added_is_refused(study: moopt.Study, tmp_path: Path) -> None:
    found = study.export(study.history.front()[0].number, "moopt", tmp_path / "out")
    text = (found.path / "moopt.json").read_text()
    for change in (
        lambda: (found.path / "moopt.json").write_text(text.replace('"size": ', '"size": 1')),
        lambda: (found.path / "moopt.json").write_text("[]"),
        lambda: (found.path / "moopt.json").write_text(text.replace('"check"', '"no"')),
        lambda: (found.path / "modeling_evil.py").write_text("import os"),
        lambda: (found.path / "more.safetensors").write_bytes(b"x"),
    ):
        change()
        with pytest.raises(ExportError, match=r"(checksum differs|no export|was not exported)"):
            exporting.read(found.path)
        (found.path / "moopt.json").write_text(text)
        for name in ("modeling_evil.py", "more.safetensors"):
            (found.path / name).unlink(missing_ok=True)
    (found.path / "README.md").write_text("published with more words")
    assert exporting.read(found.path).manifest == found.manifest


def test_figures_that_are_no_numbers_are_left_out(study: moopt.Study, tmp_path: Path) -> None:
    trial = study.history.trials[0]
    before = dict(trial.values)
    try:
        trial.values["perplexity"] = float("nan")
        found = study.export(0, "moopt", tmp_path / "out")
    finally:
        trial.values = before
    assert "NaN" not in (found.path / "moopt.json").read_text()
    assert found.manifest["figures"]["perplexity"]["search"] is None
    rewritten(found.path, found.manifest | {"figures": {"kl": {"search": None, "unit": ""}}})
    with pytest.raises(ExportError, match=r"The kl of .* is no number"):
        checked(exporting.read(found.path), "kl <= 1")
