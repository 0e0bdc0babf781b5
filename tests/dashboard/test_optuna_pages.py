"""optuna-dashboard under a prefix of ours: its pages work there, write nothing, and have a policy of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moopt.dashboard.library import key
from tests.dashboard.test_answers import get, told
from tests.dashboard.watched import watched

pytest.importorskip("optuna_dashboard")


def test_its_pages_work_where_they_are_mounted(browser: Any, address: str, storage: str) -> None:
    prefix = f"{address}/optuna/{key(storage)}/"
    with watched(browser, address) as page:
        asked: list[str] = []
        page.goto(address)
        page.get_by_role("link", name=storage).wait_for()
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_role("link", name=storage).click()
        page.get_by_text("plain").first.click()
        page.wait_for_url("**/dashboard/studies/*")
        page.get_by_text("Pareto Front").wait_for()
        page.reload()  # an address that its script made
        page.get_by_text("Pareto Front").wait_for()
        assert all(url.startswith((prefix, "data:", "blob:")) for url in asked), asked


def test_nothing_is_written_through_it(address: str, storage: str) -> None:
    before = Path(storage).read_bytes()
    studies = f"{address}/optuna/{key(storage)}/api/studies"
    assert len(told(studies)["study_summaries"]) == 3
    for method in ("POST", "DELETE", "PUT"):
        assert get(studies, method=method, origin=address)[0] == 405
        assert get(f"{studies}/0", method=method, origin="http://evil.example")[0] == 403
    assert Path(storage).read_bytes() == before


def test_its_policy_is_laxer_for_its_pages_alone(address: str, storage: str) -> None:
    _, headers, _ = get(f"{address}/optuna/{key(storage)}/dashboard")
    assert "'unsafe-eval'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    for path in ("/", "/study", f"/optuna/{key(storage)}/api/studies", "/optuna/nowhere/dashboard"):
        assert "unsafe-eval" not in get(f"{address}{path}")[1]["content-security-policy"]


def test_it_is_guarded_as_everything_is(served: Callable[..., str], storage: str) -> None:
    address = served(storage, hosts=None, token="secret-of-this-test")
    assert get(f"{address}/optuna/{key(storage)}/dashboard")[0] == 401
    assert get(f"{address}/optuna/{key(storage)}/api/studies", cookie="moopt-token=wrong")[0] == 401


def test_a_storage_that_is_not_there_is_said(address: str, storage: str) -> None:
    assert get(f"{address}/optuna/nowhere/dashboard")[0] == 404
    status, _, body = get(f"{address}/optuna/{key(str(Path(storage).with_name('missing.journal')))}/dashboard")
    assert status == 503
    assert b"There is no storage" in body


def test_what_is_known_of_its_addresses_is_checked() -> None:
    from moopt.dashboard import optuna_pages

    assert optuna_pages.offered()
    assert optuna_pages.unknown('fetch("/api/studies")') == ['"/api/']
    assert optuna_pages.unknown('url_prefix:"/dashboard",`${this.baseURL}/api/meta`') == []
