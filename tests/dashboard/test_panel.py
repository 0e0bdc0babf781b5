"""The panel of the selected candidate: the newest selection alone, as it stands, beside what must stay in sight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moopt
from moopt.study import load_history
from moopt.testing.landscapes import Landscape
from moopt_problems.synthetic import BitToy
from tests.dashboard.watched import at, drawn, watched

PANEL = ".candidate h2"


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(browser: Any, address: str, storage: str) -> None:
    page = browser.new_page()
    held: list[Any] = []
    page.route("**/trials/3?*", lambda route: held.append(route))
    page.goto(at(address, storage, "plain", trial=3))
    drawn(page)
    page.locator(".candidate").wait_for()
    page.evaluate("""() => {
      const now = new URLSearchParams(location.search);
      now.set('trial', '5');
      history.pushState(null, '', `?${now}`);
      dispatchEvent(new PopStateEvent('popstate'));
    }""")
    page.locator(PANEL).get_by_text("Trial 5").wait_for()
    assert held
    for route in held:
        route.continue_()
    page.wait_for_timeout(500)
    assert page.locator(PANEL).inner_text().startswith("Trial 5")
    page.close()


def test_the_panel_follows_a_candidate_that_is_still_to_come(
    browser: Any, served: Callable[..., str], tmp_path: Path
) -> None:
    path = str(tmp_path / "s.journal")
    moopt.Study("live", Landscape(), "random", path, seed=0).run(trials=3)
    page = browser.new_page()
    page.goto(at(served(path), path, "live", trial=8))
    page.locator(".candidate .problem").wait_for()
    moopt.Study("live", Landscape(), "random", path, seed=0).run(trials=10)
    page.locator(PANEL).get_by_text("Trial 8").wait_for()
    page.close()


def test_beside_the_panel_what_is_wrong_stays_on_top(browser: Any, served: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("s", Landscape(), "random", str(path), seed=0).run(trials=20)
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.goto(at(served(str(path)), str(path), "s", trial=3))
    drawn(page)
    page.locator(PANEL).wait_for()
    tops = {name: page.locator(name).bounding_box()["y"] for name in (".ranges", ".candidate", ".cards")}
    assert tops[".ranges"] < tops[".candidate"]
    assert abs(tops[".candidate"] - tops[".cards"]) < 40
    path.unlink()
    page.locator(".trouble .problem").wait_for()
    assert page.locator(".trouble").bounding_box()["y"] < 600
    page.close()


def test_the_ring_is_round_and_around_its_point_on_logarithmic_axes(
    browser: Any, served: Callable[..., str], tmp_path: Path
) -> None:
    path = str(tmp_path / "s.journal")
    moopt.Study("s", BitToy(8), "nsga2", path, seed=0).run(trials=60)
    address = served(path)
    with watched(browser, address) as page:
        page.goto(at(address, path, "s"))
        drawn(page)
        logarithmic = page.evaluate("""() => [...document.querySelectorAll('.figure')]
            .filter((figure) => figure.layout.yaxis?.type === 'log').length""")
        assert logarithmic
        number = load_history(path).front()[1].number
        page.goto(at(address, path, "s", trial=number))
        drawn(page)
        boxes = page.evaluate("""() => [...document.querySelectorAll('[data-card=front] .shapelayer path')]
            .map((path) => path.getBBox()).map(({ width, height }) => [width, height])""")
        assert boxes
        assert all(abs(width - height) < 1 and width > 14 for width, height in boxes)


def test_a_card_whose_answer_is_lost_is_asked_for_again(browser: Any, address: str, storage: str) -> None:
    page = browser.new_page()
    asked: list[str] = []

    def once(route: Any) -> None:
        asked.append(route.request.url)
        route.abort() if len(asked) == 1 else route.continue_()

    page.route("**/cards/front?*", once)
    page.goto(at(address, storage, "plain"))
    page.locator("[data-card=front]").get_by_text("does not answer").wait_for()
    page.locator("[data-card=front] .main-svg").first.wait_for()
    page.close()


def test_a_page_that_nobody_sees_holds_no_connection(browser: Any, address: str, storage: str) -> None:
    page = browser.new_page()
    page.add_init_script("""
      const Known = EventSource;
      window.open_streams = new Set();
      window.EventSource = class extends Known {
        constructor(...given) { super(...given); open_streams.add(this); }
        close() { open_streams.delete(this); super.close(); }
      };
    """)
    page.goto(at(address, storage, "plain"))
    drawn(page)
    page.wait_for_function("() => open_streams.size === 1")
    for hidden, streams in ((True, 0), (False, 1)):
        page.evaluate(f"""() => {{
          Object.defineProperty(document, 'hidden', {{ value: {json.dumps(hidden)}, configurable: true }});
          document.dispatchEvent(new Event('visibilitychange'));
        }}""")
        assert page.evaluate("() => open_streams.size") == streams
    page.close()
