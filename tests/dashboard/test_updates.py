"""A page that was there while a study went on shows what a fresh one does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import moopt
from moopt.dashboard.library import key
from moopt.testing.landscapes import Landscape
from tests.dashboard.watched import at, drawn, watched

SHOWN = """() => Object.fromEntries([...document.querySelectorAll('section')].map((section) => {
  const figure = section.querySelector('.figure');
  const text = [...section.querySelectorAll('h2, p, summary, td')].map((each) => each.textContent);
  return [section.dataset.card, JSON.stringify([section.hidden, text, figure && figure.data])];
}))"""
"""Everything that the cards show: what is written, and the arrays of the figures."""


def shown(page: Any, trials: int) -> Any:
    """What the cards show, once all of them show that many trials."""
    page.wait_for_function(f"() => document.querySelector('header')?.textContent.includes('tried {trials} candidates')")
    drawn(page)
    for section in page.locator("section:visible").all():  # only what is in sight is kept up to date
        section.scroll_into_view_if_needed()
        page.evaluate("new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)))")
        page.locator(".cards[aria-busy=false]").wait_for()
    return page.evaluate(SHOWN)


def test_after_updates_a_page_equals_a_fresh_one(browser: Any, served: Callable[..., str], tmp_path: Path) -> None:
    path = str(tmp_path / "s.journal")
    problem = Landscape(objectives=3, constraint="measured", behaviour="flaky")

    def run(trials: int) -> None:
        moopt.Study("live", problem, "random", path, seed=0).run(trials=trials)

    run(5)
    address = served(path)
    with watched(browser, address) as page, watched(browser, address) as fresh:
        page.goto(at(address, path, "live"))
        drawn(page)
        for trials in (6, 9, 30):
            run(trials)
            old = shown(page, trials)
            fresh.goto(at(address, path, "live"))
            assert old == shown(fresh, trials)


def test_a_comparison_follows_the_studies_that_go_on(browser: Any, served: Callable[..., str], tmp_path: Path) -> None:
    path = str(tmp_path / "s.journal")
    for name in ("one", "two"):
        moopt.Study(name, Landscape(), "random", path, seed=len(name)).run(trials=5)
    address = served(path)
    url = f"{address}/compare?{urlencode([('study', f'{key(path)}:{name}') for name in ('one', 'two')])}"
    with watched(browser, address) as page, watched(browser, address) as fresh:
        page.goto(url)
        drawn(page)
        before = page.evaluate(SHOWN)
        moopt.Study("two", Landscape(), "random", path, seed=3).run(trials=40)
        fresh.goto(url)
        drawn(fresh)
        expected = fresh.evaluate(SHOWN)
        assert before != expected
        page.wait_for_function(f"(expected) => JSON.stringify(({SHOWN})()) === JSON.stringify(expected)", arg=expected)


def test_a_storage_that_vanishes_is_said_and_is_shown_when_it_is_back(
    browser: Any, served: Callable[..., str], storage: str, tmp_path: Path
) -> None:
    path, kept = tmp_path / "s.journal", tmp_path / "kept.journal"
    shutil.copy(storage, path)
    address = served(str(path))
    page = browser.new_page()
    page.goto(at(address, str(path), "plain"))
    titles = drawn(page)
    shutil.move(path, kept)
    page.get_by_text("cannot be read any more").wait_for()
    assert drawn(page) == titles  # what was known stays
    page.reload()
    page.get_by_text("cannot be read any more").first.wait_for()
    moopt.Study("plain", Landscape(known=True), "nsga2", str(kept), seed=0).run(trials=45)
    shutil.copy(kept, path)
    page.get_by_text("tried 45 candidates").wait_for()
    page.wait_for_function("() => !document.querySelector('.trouble').hasChildNodes()")
    assert drawn(page) == titles
    page.close()
