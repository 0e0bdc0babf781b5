"""axe-core, an accessibility checker, on every page, in light and dark."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from moopt.dashboard.library import key
from moopt.study import load_history
from tests.dashboard.conftest import HOSTILE
from tests.dashboard.watched import at, drawn


def violations(page: Any) -> list[str]:
    """What is serious or critical, each with the elements it is found in."""
    checker = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = checker.run(page).response
    assert len(found["passes"]) > 10  # it did look
    return [
        f"{each['impact']}: {each['id']} at {[node['html'][:150] for node in each['nodes']]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_violation(browser: Any, address: str, storage: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe is written into the page
    page = context.new_page()
    page.goto(address)
    page.get_by_role("link", name="plain").wait_for()
    assert violations(page) == []
    trial = load_history(storage, HOSTILE).front()[0].number
    page.goto(at(address, storage, HOSTILE, trial=trial, ranges='{"f0":[null,0.3]}'))
    drawn(page)
    page.locator(".candidate h2").wait_for()
    page.get_by_text("Choose candidates by their figures").click()
    for summary in page.locator("section summary").all():
        summary.click()
    assert violations(page) == []
    both = urlencode([("study", f"{key(storage)}:{name}") for name in ("plain", "hard")])
    page.goto(f"{address}/compare?{both}")
    drawn(page)
    assert violations(page) == []
    context.close()
