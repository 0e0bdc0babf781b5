"""Candidates chosen by ranges of their figures, and studies compared, in a real browser."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from moopt.dashboard.library import key
from moopt.history import Trial
from moopt.study import load_history
from tests.dashboard.conftest import HOSTILE
from tests.dashboard.test_answers import get, told
from tests.dashboard.watched import at, drawn, watched

SHOWN = """() => ({
  lines: document.querySelector('[data-card=parallel] .figure')?.data
    .filter((t) => t.opacity > .5).map((t) => t.customdata[0]),
  points: document.querySelector('[data-card=front] .figure').data.flatMap((t) =>
    Array.isArray(t.marker?.opacity) ? t.customdata.filter((_, i) => t.marker.opacity[i] > .1) : []),
  veiled: document.querySelector('[data-card=decisions] .figure').layout.shapes.filter((s) => s.fillcolor).length,
})"""
"""What is not faded in each picture, and how many columns of the heat map are."""


def ranges(page: Any) -> Any:
    return json.loads(parse_qs(urlsplit(page.url).query)["ranges"][0])


def dragged(page: Any, card: str, box: tuple[float, float, float, float]) -> None:
    """Drag over a part of a picture's plane: left, top, right and bottom, as shares of it."""
    plane = page.locator(f"[data-card={card}] .figure .nsewdrag").first
    plane.scroll_into_view_if_needed()
    at = plane.bounding_box()
    left, top, right, bottom = box
    page.mouse.move(at["x"] + left * at["width"], at["y"] + top * at["height"])
    page.mouse.down()
    page.mouse.move(at["x"] + right * at["width"], at["y"] + bottom * at["height"], steps=5)
    page.mouse.up()


def within(trials: list[Trial], chosen: Any) -> set[int]:
    return {
        trial.number
        for trial in trials
        if all(
            (low is None or trial.values[name] >= low) and (high is None or trial.values[name] <= high)
            for name, (low, high) in chosen.items()
        )
    }


def test_a_range_on_the_uprights_is_one_on_all_cards(browser: Any, address: str, storage: str) -> None:
    history = load_history(storage, HOSTILE)
    front = history.front()
    with watched(browser, address) as page:
        page.goto(at(address, storage, HOSTILE))
        drawn(page)
        dragged(page, "parallel", (0.02, 0.05, 0.3, 0.6))
        page.locator(".chosen").get_by_text("points of the front").wait_for()
        chosen = ranges(page)
        assert list(chosen) == ["f0"]
        inside = within(front, chosen)
        assert 0 < len(inside) < len(front)
        shown = page.evaluate(SHOWN)
        assert set(shown["lines"]) == inside
        assert set(shown["points"]) == within(history.trials, chosen)
        assert shown["veiled"] == len(front) - len(inside)
        page.reload()  # the choice is in the address
        page.locator(".chosen").get_by_text("points of the front").wait_for()
        drawn(page)
        assert page.evaluate(SHOWN) == shown
        page.keyboard.press("Escape")
        page.wait_for_function("() => !location.search.includes('ranges=')")
        page.locator(".chosen").wait_for(state="hidden")
        assert page.evaluate(SHOWN)["veiled"] == 0


def test_a_box_over_the_front_is_a_range_of_both_objectives(browser: Any, address: str, storage: str) -> None:
    history = load_history(storage, HOSTILE)
    with watched(browser, address) as page:
        page.goto(at(address, storage, HOSTILE))
        drawn(page)
        page.get_by_role("button", name="Drag to choose a range").first.click()
        dragged(page, "front", (0.02, 0.03, 0.5, 0.5))
        page.locator(".chosen").get_by_text("points of the front").wait_for()
        chosen = ranges(page)
        assert set(chosen) == {"f0", "f1"}
        assert set(page.evaluate(SHOWN)["lines"]) == within(history.front(), chosen)
        page.go_back()
        page.locator(".chosen").wait_for(state="hidden")


def test_a_range_is_written_with_the_keyboard(browser: Any, address: str, storage: str) -> None:
    with watched(browser, address) as page:
        page.goto(at(address, storage, "plain"))
        drawn(page)
        page.get_by_text("Choose candidates by their figures").click()
        page.get_by_label("f0, at most").fill("0.2")
        page.keyboard.press("Tab")
        page.wait_for_url("**ranges=**")
        assert ranges(page) == {"f0": [None, 0.2]}
        page.get_by_role("button", name="Show all").click()
        page.locator(".chosen").wait_for(state="hidden")
        assert page.get_by_label("f0, at most").input_value() == ""


def test_what_is_within_ranges_is_told(address: str, storage: str) -> None:
    trials = [trial for trial in load_history(storage, "hard").trials if trial.state == "complete"]

    def url(asked: Any) -> str:
        return f"{address}/api/{key(storage)}/within?{urlencode({'study': 'hard', 'ranges': json.dumps(asked)})}"

    chosen = {"f0": [None, 0.3], "mean": [0.2, None]}
    assert set(told(url(chosen))["trials"]) == within(trials, chosen)
    for wrong in ({"no": [0, 1]}, {"f0": [0]}, {"f0": ["a", None]}, [], None):
        status, _, body = get(url(wrong))
        assert status == 400
        assert b"expected two bounds" in body


def test_studies_are_ticked_and_compared(browser: Any, address: str, storage: str) -> None:
    with watched(browser, address) as page:
        page.goto(address)
        assert page.get_by_role("button", name="Compare").is_disabled()
        for name in ("plain", "hard"):
            page.locator(".study", has=page.get_by_role("link", name=name)).get_by_role("checkbox").check()
        page.get_by_role("button", name="Compare 2 studies").click()
        page.wait_for_url("**/compare?**")
        assert "The fronts" in drawn(page)
        assert page.locator("section .main-svg").count() > 0
        assert page.locator(".findings a").all_inner_texts() == ["hard", "plain"]


def test_what_cannot_be_compared_is_said(browser: Any, address: str, storage: str) -> None:
    page = browser.new_page()
    both = [("study", f"{key(storage)}:{name}") for name in ("plain", HOSTILE)]
    page.goto(f"{address}/compare?{urlencode(both)}")
    page.get_by_role("alert").get_by_text("objectives").wait_for()
    page.goto(f"{address}/compare?{urlencode(both[:1])}")
    page.get_by_text("Name two studies or more").wait_for()
    page.goto(f"{address}/compare?study=nowhere:x&study=nowhere:y")
    page.get_by_text("There is no such study").wait_for()
    page.close()
