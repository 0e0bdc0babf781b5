"""`study.show()` in a real notebook, whose output a real browser draws without a network; and outside of one."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import moopt
from moopt.errors import ReportError
from moopt.testing.landscapes import Landscape

DEFINED = """
import moopt
from moopt.testing.landscapes import Landscape
from moopt.views import views
study = moopt.Study("a </script> <b>study</b>", Landscape(known=True), "random", seed=0).run(trials=20)
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[Any]]:
    """What the cells of a notebook showed, the first of which defines a study."""
    cells = [DEFINED, "study.show()", 'study.show("front")', 'views(study.history)["front"](study.history)']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    nbformat.validate(notebook)
    assert len(nbformat.writes(notebook)) < 8_000_000
    return [cell.outputs for cell in notebook.cells]


def test_each_cell_shows_its_cards_once(outputs: list[list[Any]]) -> None:
    assert [len(shown) for shown in outputs[1:]] == [1, 1, 1]
    first = outputs[1][0].data["text/plain"]
    assert first.startswith("What to ship: Each line is")
    assert "What was run:" in first
    for shown in outputs[2:]:
        assert shown[0].data["text/plain"].startswith("The front: Each point is one candidate")
        assert "\n" not in shown[0].data["text/plain"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_output_draws_itself(outputs: list[list[Any]], browser: Any, tmp_path: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "about:")) else None)
    path = tmp_path / "cell.html"
    path.write_text("\n".join(shown[0].data["text/html"] for shown in outputs[1:]))
    page.goto(path.as_uri())
    frames = page.locator("iframe").all()
    assert len(frames) == 3
    for place, figures in zip(frames, (3, 1, 1), strict=True):
        inside = place.content_frame
        inside.locator(".figure .main-svg").first.wait_for()
        assert inside.locator(".figure:has(.main-svg)").count() == inside.locator(".figure").count() >= figures
        height = inside.locator("body").evaluate("each => each.offsetHeight")
        assert place.bounding_box()["height"] == pytest.approx(height, abs=1)
    assert page.locator("iframe").first.content_frame.locator("h1").inner_text() == "a </script> <b>study</b>"
    page.screenshot(path=tmp_path / "cell.png", full_page=True)
    page.close()
    assert said == []


def test_outside_of_a_notebook_a_page_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{DEFINED}\nstudy.show()\nstudy.show('front', 'run')"],
        env={"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert all(re.fullmatch(rf"Wrote {tmp_path}/moopt-\w+/a-script-b-study-b\.html", line) for line in lines)
    whole, some = (Path(line.removeprefix("Wrote ")).read_text() for line in lines)
    title = html.escape("a </script> <b>study</b>")
    assert f"<h1>{title}</h1>" in whole
    assert "<h2>What to ship</h2>" in whole
    assert re.findall("<h2>(.*)</h2>", some) == ["The front", "What was run"]


def test_a_card_that_is_not_there_is_refused() -> None:
    study = moopt.Study("s", Landscape(known=True), "random", seed=0)
    with pytest.raises(ReportError, match="'s' has no card 'fronts'; it has shipping, front"):
        study.show("fronts")
