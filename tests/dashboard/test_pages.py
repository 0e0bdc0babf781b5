"""The dashboard in a real browser: every card draws, a selection is one everywhere, and a run appears as it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moopt
from moopt.problem import Evaluation, Fidelity
from moopt.space import Config
from moopt.storage import Storage
from moopt.study import load_history
from moopt.testing.landscapes import MIXED, Landscape
from moopt_problems import BitAllocation
from tests.dashboard.conftest import HOSTILE
from tests.dashboard.watched import at, drawn, watched

SMALL: dict[str, Any] = {"text": "prose", "tokens": 64, "context": 64, "held_out": 0, "validation": 0}


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page; at the end, nothing was complained of and nothing asked for elsewhere."""
    with watched(browser, address) as found:
        yield found


def test_the_list_leads_to_a_study(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="plain").click()
    page.wait_for_url("**/study?**")
    assert page.locator("h1").inner_text() == "plain"


def test_names_are_never_html(page: Any, address: str, storage: str) -> None:
    page.goto(address)
    page.get_by_role("link", name=HOSTILE).wait_for()
    page.goto(at(address, storage, HOSTILE))
    page.locator("h1").wait_for()
    assert page.locator("h1").inner_text() == HOSTILE
    drawn(page)


@pytest.mark.parametrize("name", ["plain", "hard", HOSTILE])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_every_card_is_drawn(
    page: Any, address: str, storage: str, name: str, width: int, scheme: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(at(address, storage, name))
    page.locator("section").first.wait_for()
    titles = drawn(page)
    assert {"The front", "What the front decided", "Progress of the search"} <= set(titles)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    for figure in page.locator(".figure").all():
        assert figure.locator(".main-svg").count() > 0


def test_what_is_selected_on_one_card_is_selected_on_all(page: Any, address: str, storage: str) -> None:
    front = load_history(storage, "plain").front()
    page.goto(at(address, storage, "plain"))
    page.locator("section").first.wait_for()
    drawn(page)
    heat = page.locator("[data-card=decisions] .figure")
    heat.scroll_into_view_if_needed()
    box = heat.locator(".heatmaplayer image").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * (len(front) - 0.5) / len(front), box["y"] + box["height"] / 2)
    page.wait_for_url("**trial=**")
    number = int(page.url.rpartition("trial=")[2])
    assert number == front[-1].number
    assert page.locator(".candidate h2").inner_text().startswith(f"Trial {number}")
    marked = page.evaluate(
        "() => document.querySelector('[data-card=front] .figure').layout.shapes.map(s => [s.xanchor, s.yanchor])"
    )
    values = front[-1].values
    assert marked == [[values["f1"], values["f0"]]]
    page.keyboard.press("Escape")
    page.wait_for_function("() => !location.search.includes('trial=')")
    assert page.locator(".candidate").is_hidden()
    page.go_back()
    page.locator(".candidate h2").wait_for()
    assert page.locator(".candidate h2").inner_text().startswith(f"Trial {number}")


def test_an_address_brings_its_selection(page: Any, address: str, storage: str) -> None:
    page.goto(at(address, storage, "plain", trial=3))
    page.locator(".candidate h2").wait_for()
    assert page.locator(".candidate h2").inner_text().startswith("Trial 3")
    assert "--trial 3 " in page.locator(".candidate code").first.inner_text()


class Slow(Landscape):
    """Takes its time."""

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        time.sleep(0.3)
        return super().evaluate(config, fidelity)


def test_a_run_appears_within_two_seconds(page: Any, served: Callable[..., str], tmp_path: Path) -> None:
    path = str(tmp_path / "live.journal")
    moopt.Study("live", Slow(known=True), "random", path).run(trials=2)
    address = served(path)
    page.goto(at(address, path, "live"))
    page.get_by_text("tried 2 candidates").wait_for()
    drawn(page)
    running = threading.Thread(target=lambda: moopt.Study("live", Slow(known=True), "random", path).run(trials=12))
    running.start()
    page.locator(".state.live").wait_for(timeout=8000)
    page.wait_for_function("() => !document.querySelector('header').textContent.includes('tried 2 candidates')")
    running.join()
    page.get_by_text("tried 12 candidates").wait_for(timeout=8000)


@pytest.mark.parametrize("objectives", [1, 2, 5])
@pytest.mark.parametrize("trials", [0, 1])
def test_small_studies_are_explained(
    page: Any, served: Callable[..., str], tmp_path: Path, objectives: int, trials: int
) -> None:
    path = str(tmp_path / "small.journal")
    study = moopt.Study("small", Landscape(space=MIXED, objectives=objectives), "random", path)
    if trials:
        study.run(trials=trials)
    else:  # killed before its first trial
        storage = Storage(path)
        storage.open(own="small")
        storage.create("small", list(study.problem.objectives), study.meta())
        storage.close()
    page.goto(at(served(path), path, "small"))
    page.locator("section").first.wait_for()
    drawn(page)


def test_a_candidate_is_exported_from_its_panel(
    page: Any, served: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "s.journal")
    problem = BitAllocation(str(tiny), bits=(4, 8), group_size=32, sensitivities=None, **SMALL)
    study = moopt.Study("bits", problem, "random", path).run(trials=2)
    page.goto(at(served(path, studies=[study], exports=tmp_path / "out"), path, "bits", trial=1))
    page.get_by_label("Format").select_option("moopt")
    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_text("Written to").wait_for(timeout=60_000)
    assert (tmp_path / "out" / "trial-1" / "model.safetensors").exists()
