"""A study as one file: somebody else builds it again and finds the same figures, or is told what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moopt
from moopt import bundles
from moopt.cli import app
from moopt.errors import BundleError, StudyMismatch

SOURCE = """
import moopt

class Bowl(moopt.Problem):
    space = moopt.Space({"x": moopt.Float(0, 1), "bits": moopt.Ordinal(2, 3, 4, 8)})
    objectives = (moopt.Objective("loss"), moopt.Objective("size_mb", unit="MB", known=True))
    measurements = {"held-out": moopt.Fidelity(64, "held-out")}
    SHIFT = 0.0

    def known(self, config):
        return {"size_mb": config["bits"] * 1.5}

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"loss": (config["x"] - 0.3) ** 2 + 1 / config["bits"] + self.SHIFT})

    def licences(self):
        return {"bowl": "cc0-1.0", "spoon": ""}

study = moopt.Study("bowl", Bowl(), "random", "bowl.journal", seed=3)
"""


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a study that is a file of its own; the file and its storage are gone."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Path("bowl_study.py").write_text(SOURCE)
    run = CliRunner()
    assert run.invoke(app, ["run", "bowl_study.py", "--trials", "5"]).exit_code == 0
    told = run.invoke(app, ["bundle", "bowl_study.py", "--out", str(tmp_path / "bowl.zip")])
    assert told.exit_code == 0, told.output
    assert "Wrote 5 trials of bowl" in told.output
    assert "spoon: no licence named" in told.output
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "there")
    return tmp_path / "bowl.zip"


def altered(path: Path, name: str, data: bytes) -> Path:
    """A copy of a bundle with a file changed."""
    copy = path.with_name(f"altered {name} {len(data)}.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for each in old.namelist():
            new.writestr(each, data if each == name else old.read(each))
    return copy


def test_a_trial_is_found_again_to_the_last_digit(bundled: Path, tmp_path: Path) -> None:
    found = bundles.reproduce(bundled, 2)
    assert {(f.name, f.where) for f in found.figures} >= {("loss", "search"), ("size_mb", "search")}
    assert {figure.verdict for figure in found.figures} == {"same"}
    assert found.changed == {}
    told = CliRunner().invoke(app, ["reproduce", str(bundled), "--trial", "2", "--json"])
    assert told.exit_code == 0
    assert {each["verdict"] for each in json.loads(told.stdout)["figures"]} == {"same"}
    assert [file.name for file in tmp_path.iterdir()] == ["bowl.zip"]  # nothing is left


def test_what_is_measured_at_the_end_is_measured_again(bundled: Path) -> None:
    with zipfile.ZipFile(bundled) as archive:
        manifest = json.loads(archive.read("bundle.json"))
    assert manifest["licences"] == {"bowl": "cc0-1.0", "spoon": ""}
    assert manifest["versions"]["moopt"] == moopt.__version__
    assert manifest["target"] == "bowl_study.py"
    found = [bundles.reproduce(bundled, number) for number in range(5)]
    assert any(figure.where == "held-out" for each in found for figure in each.figures)


def test_figures_that_differ_are_said(bundled: Path) -> None:
    path = repacked(bundled, "SHIFT = 0.0", "SHIFT = 0.1")
    told = CliRunner().invoke(app, ["reproduce", str(path), "--trial", "1"])
    assert told.exit_code == 1
    assert "differs" in told.output


def repacked(path: Path, before: str, after: str) -> Path:
    """A bundle whose source says something else, with the right hashes: another machine's result."""
    copy = path.with_name("other.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        manifest = json.loads(old.read("bundle.json"))
        data = {name: old.read(name) for name in manifest["files"]}
        data["bowl_study.py"] = data["bowl_study.py"].replace(before.encode(), after.encode())
        manifest["files"] = {name: hashlib.sha256(each).hexdigest() for name, each in data.items()}
        new.writestr("bundle.json", json.dumps(manifest))
        for name, each in data.items():
            new.writestr(name, each)
    return copy


def test_another_problem_is_refused(bundled: Path) -> None:
    path = repacked(bundled, "moopt.Ordinal(2, 3, 4, 8)", "moopt.Ordinal(2, 3, 4)")
    with pytest.raises(StudyMismatch, match="space"):
        bundles.reproduce(path, 1)


def test_what_was_altered_or_is_no_bundle_is_refused(bundled: Path, tmp_path: Path) -> None:
    for path, said in (
        (altered(bundled, "bowl_study.py", b"import os"), "bowl_study.py is not what was bundled"),
        (altered(bundled, "bundle.json", b"{}"), "no bundle that can be read"),
        (altered(bundled, "bundle.json", b'{"files": {"../x": "0"}}'), "no bundle that can be read"),
        (tmp_path / "missing.zip", "no bundle that can be read"),
    ):
        with pytest.raises(BundleError, match=said):
            bundles.reproduce(path, 1)
    (tmp_path / "text.zip").write_text("no")
    told = CliRunner().invoke(app, ["reproduce", str(tmp_path / "text.zip"), "--trial", "0"])
    assert told.exit_code == 2
    with pytest.raises(BundleError, match="no completed trial 99; it has 5 trials"):
        bundles.reproduce(bundled, 99)


def test_a_study_without_trials_or_a_taken_path_is_refused(tmp_path: Path) -> None:
    from moopt.testing.landscapes import Landscape

    study = moopt.Study("empty", Landscape(), "random")
    with pytest.raises(BundleError, match="has no trials yet"):
        bundles.write(study, "x", (), tmp_path / "b.zip")
    study.run(trials=1)
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        bundles.write(study, "x", (), tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_text() == "mine"


def test_installed_problems_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    how = ["bit-toy", "--set", "layers=6", "--storage", "toy.journal"]
    assert run.invoke(app, ["run", *how, "--algorithm", "random", "--trials", "3"]).exit_code == 0
    told = run.invoke(app, ["bundle", *how, "--out", "toy.zip"])
    assert told.exit_code == 0, told.output
    told = run.invoke(app, ["reproduce", "toy.zip", "--trial", "1"])
    assert told.exit_code == 0, told.output
    assert "same" in told.output


def test_a_file_that_runs_its_study_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Path("runs_itself.py").write_text(SOURCE + "\nstudy.run(trials=4)\n")
    run = CliRunner()
    assert run.invoke(app, ["bundle", "runs_itself.py", "--out", str(tmp_path / "b.zip")]).exit_code == 0
    monkeypatch.chdir(tmp_path / "here")
    assert {f.verdict for f in bundles.reproduce(tmp_path / "b.zip", 1).figures} == {"same"}
    assert list((tmp_path / "here").iterdir()) == []


def test_damaged_bundles_are_refused(bundled: Path, tmp_path: Path) -> None:
    data = bytearray(bundled.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "damaged.zip").write_bytes(bytes(data))
    for manifest in (b'{"files": []}', b'{"files": {}, "versions": null}', b"[]"):
        altered(bundled, "bundle.json", manifest)
    for path in sorted(tmp_path.glob("*.zip")):
        if path != bundled:
            with pytest.raises(BundleError):
                bundles.reproduce(path, 1)


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    from moopt.testing.landscapes import Landscape

    study = moopt.Study("s", Landscape(), "random").run(trials=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        bundles.write(study, "x", (), tmp_path / "file" / "b.zip")
    (tmp_path / "link.zip").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="exists already"):
        bundles.write(study, "x", (), tmp_path / "link.zip")
