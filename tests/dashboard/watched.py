"""What a browser is watched for, and what the tests of pages wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from moopt.dashboard.library import key

ADVICE = ("willReadFrequently", "GL Driver Message")
"""What Chromium says of how fast plotly draws pictures in space where there is no graphics card."""
ALL_DRAWN = (
    "() => { const all = [...document.querySelectorAll('section')];"
    " return all.length && all.every((s) => s.hidden || !s.querySelector('.waiting')); }"
)


@contextmanager
def watched(browser: Any, address: str, **how: Any) -> Iterator[Any]:
    """A page; at the end, nothing was complained of and nothing asked for elsewhere."""
    found = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | how))
    said: list[str] = []

    def complained(message: Any) -> None:
        if message.type in ("error", "warning", "trace") and not any(a in message.text for a in ADVICE):
            said.append(message.text)

    found.on("console", complained)
    found.on("pageerror", lambda error: said.append(str(error)))
    own = (address.rpartition(":")[0], "data:", "blob:")
    found.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(own) else None)
    yield found
    found.close()
    assert not said, said


def at(address: str, storage: str, name: str, **more: Any) -> str:
    """The address of a study's page."""
    return f"{address}/study?{urlencode({'place': key(storage), 'study': name, **more})}"


def drawn(page: Any) -> list[str]:
    """The titles of all cards, once each of them is drawn or says why not."""
    page.wait_for_function(ALL_DRAWN, timeout=60_000)
    titles: list[str] = page.locator("section:visible h2").all_inner_texts()
    return titles
