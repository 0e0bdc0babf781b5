from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moopt
from moopt.cli import app
from moopt.testing.landscapes import Landscape


@pytest.fixture(scope="module")
def storages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One storage with two seeds of a search, one with another search."""
    folder, problem = tmp_path_factory.mktemp("compared"), Landscape(known=True)
    for seed in (0, 1):
        moopt.Study(f"nsga2-{seed}", problem, "nsga2", folder / "a.journal", seed=seed).run(20)
    moopt.Study("random-0", problem, "random", folder / "b.journal").run(20)
    moopt.Study("other", Landscape(objectives=3), "random", folder / "c.journal").run(5)
    return [str(folder / f"{name}.journal") for name in "abc"]


def test_all_studies_of_some_storages_are_written_to_one_file(storages: list[str], tmp_path: Path) -> None:
    out = tmp_path / "c.html"
    found = CliRunner().invoke(app, ["compare", *storages[:2], "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert [study["study"] for study in told["studies"]] == ["nsga2-0", "nsga2-1", "random-0"]
    page = out.read_text()
    assert all(title in page for title in ("The fronts", "What each search attains", "Who dominates whom"))


def test_studies_may_be_named(storages: list[str], tmp_path: Path) -> None:
    named = ["--study", "nsga2-1", "--study", "random-0", "--out", str(tmp_path / "c.html")]
    found = CliRunner().invoke(app, ["compare", *storages[:2], *named])
    assert found.exit_code == 0, found.output
    assert "nsga2-1" in found.stdout
    assert "nsga2-0" not in found.stdout


def test_what_cannot_be_compared_is_refused(storages: list[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "c.html")]
    differing = CliRunner().invoke(app, ["compare", storages[0], storages[2], *out])
    assert differing.exit_code == 2
    assert "different objectives" in differing.stderr
    unknown = CliRunner().invoke(app, ["compare", storages[0], "--study", "nobody", *out])
    assert unknown.exit_code == 2
    assert "There is no study nobody; there are nsga2-0, nsga2-1." in unknown.stderr
    one = CliRunner().invoke(app, ["compare", storages[1], *out])
    assert one.exit_code == 2
    assert "expected two studies or more" in one.stderr
    ending = CliRunner().invoke(app, ["compare", *storages[:2], "--out", str(tmp_path / "c.pdf")])
    assert ending.exit_code == 2
    assert "ends in .html" in ending.stderr
    assert list(tmp_path.iterdir()) == []
