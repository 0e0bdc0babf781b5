"""The dashboard's addresses: pages, and what they ask for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from moopt import __version__
from moopt.dashboard import answers
from moopt.dashboard.guard import Guard
from moopt.dashboard.library import Library
from moopt.dashboard.writing import Exports
from moopt.errors import MooptError
from moopt.study import Study
from moopt.views import look

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY = 0.5
"""Seconds from one look at a storage to the next, while somebody watches a study."""
STATIC = Path(str(files("moopt.dashboard").joinpath("static")))


def create(
    locations: Sequence[str], hosts: Sequence[str] | None = LOOPBACK, token: str | None = None,
    studies: Sequence[Study] = (), exports: Path | None = None,
) -> Starlette:  # fmt: skip
    """The application.

    Args:
        locations: Storages: paths and database URLs.
        hosts: The names that the server is known by; all others are refused. None, with a token: any.
        token: What a browser has to know; None: nothing.
        studies: Studies of these storages whose candidates may be exported.
        exports: The folder that they are exported into; None: nothing is written.
    """
    library, writing = Library(locations), Exports(studies, exports)

    async def listed(request: Request) -> Response:
        return JSONResponse({"version": __version__, "studies": await run_in_threadpool(library.listed)})

    async def study(request: Request) -> Response:
        return await answered(request, answers.study)

    async def card(request: Request) -> Response:
        return await answered(request, lambda read: answers.card(read.card(request.path_params["card"])))

    async def trial(request: Request) -> Response:
        into = writing.offered(*named(request))
        return await answered(
            request, lambda read: answers.trial(read, request.path_params["trial"]) | {"exports": into}
        )

    async def export(request: Request) -> Response:
        try:
            asked = json.loads(await request.body())
        except ValueError:
            asked = None
        try:
            return JSONResponse(await run_in_threadpool(writing.write, *named(request), asked))
        except MooptError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def answered(request: Request, tell: Any) -> Response:
        """What is told of a study; nothing if the browser has it already."""
        place, name = named(request)

        def told() -> tuple[str, Any]:
            read = library.read(place, name)
            tag = f'"{read.mark}{read.running}"'
            return tag, None if request.headers.get("if-none-match") == tag else tell(read)

        try:
            tag, found = await run_in_threadpool(told)
        except KeyError:
            return JSONResponse({"error": "There is no such study, card or trial; it may have been removed."}, 404)
        except MooptError as error:
            return JSONResponse({"error": str(error)}, 503)
        headers = {"etag": tag, "cache-control": "no-cache"}
        return Response(status_code=304, headers=headers) if found is None else JSONResponse(found, headers=headers)

    async def events(request: Request) -> Response:
        return StreamingResponse(changes(request), media_type="text/event-stream")

    async def changes(request: Request) -> AsyncIterator[str]:
        """An event for every change of a study, for as long as somebody listens."""
        (place, name), last = named(request), ""
        while not await request.is_disconnected():
            try:
                read = await run_in_threadpool(library.read, place, name)
                told = {"mark": read.mark, "running": read.running, "trials": len(read.history.trials)}
            except (KeyError, MooptError) as error:
                told = {"error": str(error) if isinstance(error, MooptError) else "The study was removed."}
            now = json.dumps(told)
            yield f"data: {now}\n\n" if now != last else ": still here\n\n"
            last = now
            await asyncio.sleep(EVERY)

    at = "/api/{place}"
    routes = [
        Route("/", page),
        Route("/study", page),
        Route("/plotly.js", plotly),
        Route("/templates.json", templates),
        Route("/page.css", style),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/studies", listed),
        Route(f"{at}/cards/{{card}}", card),
        Route(f"{at}/trials/{{trial:int}}", trial),
        Route(f"{at}/events", events),
        Route(f"{at}/exports", export, methods=["POST"]),
        Route(f"{at}/page", study),
    ]
    guard = Middleware(Guard, hosts=hosts, token=token)
    return Starlette(routes=routes, middleware=[guard, Middleware(GZipMiddleware, minimum_size=1000)])


def named(request: Request) -> tuple[str, str]:
    """The storage and the study that are meant: a name may have anything in it, so that it is no part of the path."""
    return request.path_params["place"], request.query_params.get("study", "")


async def page(request: Request) -> Response:
    """Every page: which one it is, its script reads from the address."""
    return HTMLResponse((STATIC / "index.html").read_text(encoding="utf-8"), headers={"cache-control": "no-cache"})


async def plotly(request: Request) -> Response:
    """Plotly, out of its wheel."""
    return Response(_plotly(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})


async def style(request: Request) -> Response:
    """How the report looks, which the dashboard looks like."""
    return Response(files("moopt.views").joinpath("page.css").read_text(encoding="utf-8"), media_type="text/css")


async def templates(request: Request) -> Response:
    """How figures look in the light and in the dark."""
    return JSONResponse({name: template.to_plotly_json() for name, template in look.TEMPLATES.items()})


@cache
def _plotly() -> bytes:
    return str(get_plotlyjs()).encode()
