"""The report in a real browser: it draws everything, asks for nothing, and prints whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moopt.report import write_report
from moopt.views import views
from tests.views.conftest import bit_allocation

STATE = """() => ({
  open: [...document.querySelectorAll("details")].map((each) => each.open),
  drawn: [...document.querySelectorAll(".figure")].map((each) => each.querySelector(".main-svg") !== null),
  widths: [...document.querySelectorAll(".figure .main-svg:first-child")].map((each) => each.clientWidth),
  heights: [...document.querySelectorAll(".figure .main-svg:first-child")].map((each) => each.clientHeight),
})"""
STUDY = bit_allocation()
DRAWN = [name for name, view in views(STUDY).items() if (card := view(STUDY)) is not None and card.figure is not None]
"""The cards that have a figure."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study of 120 decisions."""
    return write_report(STUDY, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """A page that shows it; at the end, nothing was complained of and nothing asked for."""
    found = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda asked: said.append(asked.url) if asked.url != report.as_uri() else None)
    yield found
    found.close()
    assert said == []


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")])
def test_every_figure_is_drawn_and_nothing_is_cut(
    page: Any, report: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    page.locator(".figure:not(:has(.main-svg))").first.wait_for(state="detached")
    assert page.locator(".figure").count() == len(DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / "report.png", full_page=True)


def test_on_paper_all_is_drawn_open_and_no_wider_than_the_page(page: Any, report: Path) -> None:
    page.goto(report.as_uri(), wait_until="load")
    page.evaluate(f"() => addEventListener('beforeprint', () => {{ window.printed = ({STATE})(); }})")
    pdf = page.pdf(format="A4")
    printed, after = page.evaluate("window.printed"), page.evaluate(STATE)
    assert pdf.startswith(b"%PDF")
    assert printed["open"] == [name != "decisions" for name in DRAWN]  # the heat map's is wider than paper
    assert printed["drawn"] == [True] * len(DRAWN)
    assert set(printed["widths"]) == {680}
    assert max(printed["heights"]) <= 800
    assert after["open"] == [False] * len(DRAWN)
    assert min(after["widths"]) > 1000


def test_it_answers_what_to_ship_at_80_mb(page: Any, report: Path) -> None:
    trial = STUDY.pick("size_mb <= 80")
    page.goto(report.as_uri())
    line = page.get_by_role("row").filter(has=page.get_by_role("cell", name="at most 80 MB")).inner_text().split("\t")
    assert line[1] == str(trial.number)
    assert f"moopt export STUDY --trial {trial.number} " in line[-1]
