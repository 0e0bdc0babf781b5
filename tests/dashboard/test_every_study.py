"""Studies of all sizes and shapes, and records that something is wrong with: shown or explained, never a blank page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moopt
from moopt.report import write_report
from moopt.study import load_history
from moopt.testing.landscapes import Landscape
from tests.dashboard.test_answers import at as asked
from tests.dashboard.test_answers import get, told
from tests.dashboard.watched import at, drawn, watched

SEARCHED = 100
SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"
"""Where pictures of all cards are left, for people to look at."""


def hard(objectives: int) -> Landscape:
    """One with constraints and failures."""
    return Landscape(objectives=objectives, known=objectives > 1, constraint="measured", behaviour="flaky")


def of_a_trial(entry: dict[str, Any]) -> bool:
    """Whether a journal's entry begins a trial or tells of one."""
    return entry["op_code"] == 4 or "trial_id" in entry


def lengthened(path: Path, times: int) -> None:
    """Write a journal's trials again and again with other values, as no search could in the time a test has."""
    rng, entries = np.random.default_rng(0), [json.loads(line) for line in path.read_text().splitlines()]
    of_trials = [each for each in entries if of_a_trial(each)]
    lines = [json.dumps(each) for each in entries]
    for copy in range(1, times):
        for entry in json.loads(json.dumps(of_trials)):
            entry["trial_id"] = entry.get("trial_id", 0) + copy * SEARCHED
            scale = float(np.exp(rng.normal(0, 0.2)))
            entry["values"] = entry.get("values") and [value * scale for value in entry["values"]]
            for attribute in (entry.get("user_attrs") or entry.get("user_attr") or {}).values():
                if isinstance(attribute, dict) and "seq" in attribute:
                    attribute["seq"] += copy * 2 * SEARCHED
                    attribute |= {"trial": attribute["trial"] + copy * SEARCHED} if "trial" in attribute else {}
            lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("trials", [0, 1])
def test_a_study_that_has_hardly_begun_says_what_is_missing(
    browser: Any, served: Callable[..., str], tmp_path: Path, objectives: int, trials: int
) -> None:
    path, problem = tmp_path / "s.journal", Landscape(objectives=objectives, constraint="measured")
    moopt.Study("study", problem, "random", str(path), seed=0).run(trials=1)
    if not trials:
        kept = [line for line in path.read_text().splitlines() if not of_a_trial(json.loads(line))]
        path.write_text("\n".join(kept) + "\n")
    assert len(load_history(str(path), "study").trials) == trials
    address = served(str(path))
    with watched(browser, address) as page:
        page.goto(at(address, str(path), "study"))
        drawn(page)
        assert page.locator(".problem").count() == 0
        assert page.locator(".reason:visible").count() > 0
        assert "cannot be drawn" not in page.locator("main").inner_text()


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("trials", [100, 5000])
def test_every_card_is_drawn_or_says_why_not(
    browser: Any, served: Callable[..., str], tmp_path: Path, objectives: int, trials: int
) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("study", hard(objectives), "random", str(path), seed=0).run(trials=SEARCHED)
    lengthened(path, trials // SEARCHED)
    history = load_history(str(path), "study")
    states = {trial.state for trial in history.trials}
    assert (len(history.trials), states) == (trials, {"complete", "failed"})
    assert any(trial.state == "complete" and not trial.feasible for trial in history.trials)
    address = served(str(path))
    with watched(browser, address) as page:
        page.goto(at(address, str(path), "study"))
        titles = drawn(page)
        assert {"What the front decided", "Progress of the search", "What was run"} <= set(titles)
        assert page.locator(".problem").count() == 0
        assert "cannot be drawn" not in page.locator("main").inner_text()
        for section in page.locator("section:visible").all():
            assert section.locator(".main-svg, .reason, table").count() > 0
        pictured(page, SCREENSHOTS / f"{objectives}-objectives-{trials}-trials")
    card = told(asked(address, str(path), "study", "cards/front"))["whole"]
    shown = [trace for trace in card["figure"]["data"] if trace["name"] in ("front", "best")]
    assert set(shown[0]["customdata"]) == {trial.number for trial in history.front()}


def pictured(page: Any, folder: Path) -> None:
    """A picture of every card that is shown, by its place and title."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, section in enumerate(page.locator("section:visible").all()):
        title = section.locator("h2").first.inner_text() if section.locator("h2").count() else "card"
        section.screenshot(path=folder / f"{place:02}-{'-'.join(re.findall('[a-z]+', title.lower()))}.png")


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every entry of a journal."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")


def results(entry: dict[str, Any]) -> dict[str, Any]:
    """What came of a trial, where an entry has it."""
    found: dict[str, Any] = entry.get("user_attr", {}).get("moopt:result", {})
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, None])
def test_values_that_are_no_numbers_are_shown_or_explained(
    browser: Any, served: Callable[..., str], tmp_path: Path, value: float | None
) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("study", Landscape(objectives=3), "random", str(path), seed=0).run(trials=20)

    def change(entry: dict[str, Any]) -> None:
        if entry.get("trial_id") in (3, 7) and entry.get("values"):
            entry["values"][0] = value
        if entry.get("trial_id") in (3, 7) and results(entry):
            results(entry)["values"]["f0"] = value

    altered(path, change)
    address = served(str(path))
    page = browser.new_page()
    page.goto(at(address, str(path), "study", trial=3))
    page.locator("section:visible, .problem").first.wait_for()
    page.locator(".candidate h2, .problem").first.wait_for()
    assert "Traceback" not in page.content()
    page.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
def test_a_value_that_is_no_number_is_a_failure_everywhere(
    served: Callable[..., str], tmp_path: Path, value: float | None
) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("study", Landscape(known=True), "random", str(path), seed=0).run(trials=20)
    best = load_history(str(path)).front()[0].number

    def change(entry: dict[str, Any]) -> None:
        if entry.get("trial_id") == best and entry.get("values"):
            entry["values"] = [value for _ in entry["values"]]
        if entry.get("trial_id") == best and results(entry):
            results(entry)["values"] = {name: value for name in results(entry)["values"]}

    altered(path, change)
    history = load_history(str(path))
    assert history.trials[best].state == "failed"
    assert "no finite number" in history.trials[best].failure.message
    assert best not in {trial.number for trial in history.front()}
    (listed,) = told(f"{served(str(path))}/api/studies")["studies"]
    assert listed["failed"] == 1
    report = write_report(history, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "cannot be drawn" not in report


def test_a_study_that_cannot_be_told_leaves_the_others_listed(served: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    for name in ("good", "bad"):
        moopt.Study(name, Landscape(), "random", str(path), seed=0).run(trials=3)
    path.write_text(path.read_text().replace('"bad"', '"bad\\udcff"'))
    listed = told(f"{served(str(path))}/api/studies")["studies"]
    assert [each["name"] for each in listed if "error" not in each] == ["good"]
    (bad,) = (each for each in listed if "error" in each)
    assert bad["name"] == "bad\\udcff"


@pytest.mark.parametrize("field", ["seq", "tokens", "values"])
def test_records_that_lack_something_are_explained(
    browser: Any, served: Callable[..., str], tmp_path: Path, field: str
) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("study", Landscape(), "random", str(path), seed=0).run(trials=5)
    altered(path, lambda entry: results(entry).pop(field, None))
    address = served(str(path))
    page = browser.new_page()
    page.goto(address)
    page.locator(".studies .problem").get_by_text("Another version of moopt may have written it").wait_for()
    page.goto(at(address, str(path), "study"))
    page.locator(".problem").get_by_text("cannot be read (KeyError").wait_for()
    page.close()


def test_a_line_that_is_damaged_is_named(served: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    moopt.Study("study", Landscape(), "random", str(path), seed=0).run(trials=5)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "{broken", *lines[5:]]) + "\n")
    status, _, body = get(asked(served(str(path)), str(path), "study", "page"))
    assert status == 503
    assert b"is damaged in line 6" in body
