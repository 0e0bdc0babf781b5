"""Pictures, in a real Chromium; where there is none these tests are skipped, and what is said instead is not."""

from __future__ import annotations

import builtins
import shutil
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import moopt
from moopt.errors import ReportError
from moopt.report import write_markdown, write_picture, write_pictures

HAS_FIGURE = {"front", "decisions", "importance", "uniform", "hypervolume", "spending", "workers", "failures"}

browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="there is no chromium; Debian's is installed by: apt-get install chromium"
)


@browser
def test_every_figure_is_a_file(history: moopt.History, tmp_path: Path) -> None:
    written = write_pictures(history, tmp_path / "new", "svg", width_cm=8.5)
    assert {path.name for path in written} == {f"{name}.svg" for name in HAS_FIGURE}
    assert sorted((tmp_path / "new").iterdir()) == sorted(written)
    for path in written:
        root = ElementTree.parse(path).getroot()
        assert root.get("width") == "321"  # 8.5 cm of 96 pixels an inch
        assert root[0].get("style") == "fill: rgb(255, 255, 255); fill-opacity: 1;"
        assert "Helvetica, Arial" in path.read_text()
        assert 'href="http' not in path.read_text()


@browser
def test_a_picture_is_as_wide_as_it_is_printed(history: moopt.History, tmp_path: Path) -> None:
    png = write_picture(history, tmp_path / "front.png", "front", width_cm=17).read_bytes()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(17 / 2.54 * 300, abs=3)
    assert write_picture(history, tmp_path / "front.pdf", "front").read_bytes().startswith(b"%PDF")


@browser
def test_what_cannot_be_drawn_leaves_what_was_there(
    history: moopt.History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "front.svg").write_text("old")
    monkeypatch.setenv("BROWSER_PATH", shutil.which("true") or "")
    with pytest.raises(ReportError, match=r"drew no picture.*BROWSER_PATH"):
        write_pictures(history, tmp_path, "svg", ["front"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_browser_that_is_not_there_is_named(
    history: moopt.History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(ReportError, match=r"there is none here; install one .*BROWSER_PATH"):
        write_pictures(history, tmp_path, "svg", ["front"])


def test_without_the_extra_the_error_says_what_to_install(
    history: moopt.History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("kaleido"):
            raise ModuleNotFoundError(name)
        return there(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ReportError, match=r"pip install 'moopt\[pictures\]'"):
        write_markdown(history, tmp_path / "report.md")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "card", "width", "said"),
    [
        ("front.gif", "front", 17, "ends in .png, .svg or .pdf"),
        ("front.svg", "front", 2, "expected 6 to 60"),
        ("front.svg", "front", float("nan"), "Got a width of nan cm"),
        ("run.svg", "run", 17, "'run' has no picture: it is a table."),
        ("other.svg", "other", 17, "no card 'other'; it has shipping, front"),
    ],
)
def test_what_is_no_picture_is_refused(
    history: moopt.History, tmp_path: Path, path: str, card: str, width: float, said: str
) -> None:
    with pytest.raises(ReportError, match=said):
        write_picture(history, tmp_path / path, card, width)
    assert list(tmp_path.iterdir()) == []
