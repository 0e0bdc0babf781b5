"""optuna-dashboard's own pages of a storage under `/optuna/<place>`, to be looked at: nothing is written through them.

Its pages name their addresses from the root of a server, in three ways that its script has; they are led to where it is
mounted here. A release whose script has others is not offered.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from moopt.dashboard.library import Library
from moopt.errors import MooptError

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What its pages may load: nothing from elsewhere, either; its parallel coordinates compile code as they run."""
ADDRESSES = (('url_prefix:"/dashboard"', 1), ("baseURL}/api/", 10), ("`/csv/", 1))
"""What its script has addresses in, and at least how often."""


class OptunaPages:
    """The pages.

    Args:
        library: The storages.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._apps: dict[object, Any] = {}

    async def answer(self, request: Request) -> Response:
        """Answer a request under a storage's own prefix."""
        place, path = request.path_params["place"], request.path_params["path"].rstrip("/")
        prefix = f"/optuna/{place}"
        if not await run_in_threadpool(offered):
            return PlainTextResponse("optuna-dashboard is not installed, or is a release that cannot be mounted.", 404)
        if place not in self._library.places:
            return PlainTextResponse("There is no such storage.", 404)
        if not path:
            return RedirectResponse(f"{prefix}/dashboard", 303)
        if path == "/static/bundle.js":
            packed = await run_in_threadpool(script, prefix)
            return Response(packed, media_type="text/javascript", headers={"content-encoding": "gzip"})
        try:
            found = await run_in_threadpool(self._ask, place, path, request)
        except MooptError as error:
            return PlainTextResponse(str(error), 503)
        if "text/html" in found.headers.get("content-type", ""):
            page = bytes(found.body).replace(b'"/static/', f'"{prefix}/static/'.encode())
            page = page.replace(b"<head>", b'<head><link rel="icon" href="data:,">')
            return Response(
                page, found.status_code, media_type="text/html", headers={"content-security-policy": POLICY}
            )
        return found

    def _ask(self, place: str, path: str, request: Request) -> Response:
        from optuna_dashboard import wsgi

        with self._library.opened(place) as storage:
            if storage not in self._apps:
                self._apps[storage] = wsgi(storage)
            return called(self._apps[storage], path, request.url.query)


def called(app: Callable[..., Iterable[bytes]], path: str, query: str) -> Response:
    """What a WSGI application answers to a GET request."""
    told: dict[str, Any] = {}

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        told.update(status=int(status.split()[0]), headers=dict(headers))
        return BytesIO().write

    body = app(
        {
            "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": "0",
            "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_ACCEPT_ENCODING": "",
            "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": BytesIO(), "wsgi.errors": BytesIO(),
            "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
        },
        start,
    )  # fmt: skip
    try:
        content = b"".join(body)
    finally:
        if callable(close := getattr(body, "close", None)):
            close()
    kind = told["headers"].get("Content-Type", "text/plain")
    return Response(content, told["status"], headers={"content-type": kind})


@cache
def offered() -> bool:
    """Whether optuna-dashboard is installed, and its script has its addresses where they are known to be."""
    text = _script()
    return bool(text) and all(text.count(where) >= least for where, least in ADDRESSES) and not unknown(text)


@cache
def script(prefix: str) -> bytes:
    """Its script, compressed, with its addresses under a prefix."""
    text = _script()
    text = text.replace('url_prefix:"/dashboard"', f'url_prefix:"{prefix}/dashboard"')
    text = text.replace("baseURL}/api/", f"baseURL}}{prefix}/api/").replace("`/csv/", f"`{prefix}/csv/")
    return gzip.compress(text.encode(), 5)


def unknown(text: str) -> list[str]:
    """Addresses from the root that the script has elsewhere."""
    return re.findall(
        r"[\"'`]/(?:api|csv|dashboard|static)[/\"'`]", re.sub(r'url_prefix:"/dashboard"|`/csv/', "", text)
    )


def _script() -> str:
    found = find_spec("optuna_dashboard")
    path = None if found is None or found.origin is None else Path(found.origin).with_name("public") / "bundle.js"
    return path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
