"""The dashboard's addresses: pages, and what they ask for."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from moopt.dashboard import answers, optuna_pages, pages
from moopt.dashboard.guard import Guard
from moopt.dashboard.library import Library, Missing, Read
from moopt.dashboard.optuna_pages import OptunaPages
from moopt.dashboard.sent import Sent
from moopt.dashboard.writing import Exports
from moopt.errors import MooptError, StorageError
from moopt.study import Study

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY = 0.5
"""Seconds from one look at a storage to the next, while somebody watches a study."""

logger = logging.getLogger("moopt")


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
    library = Library(locations)
    asked = Asked(library, Exports(studies, exports))

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        """Read everything while the first page is still on its way."""
        threading.Thread(target=_prepare, args=[library], daemon=True).start()
        yield

    at = "/api/{place}"
    routes = [
        *pages.routes(),
        Route("/optuna/{place}{path:path}", OptunaPages(library).answer),
        Route("/api/studies", asked.list),
        Route("/api/compare", asked.compare),
        Route(f"{at}/page", asked.page),
        Route(f"{at}/cards/{{card}}", asked.card),
        Route(f"{at}/trials/{{trial:int}}", asked.trial),
        Route(f"{at}/within", asked.within),
        Route(f"{at}/events", asked.events),
        Route(f"{at}/exports", asked.export, methods=["POST"]),
    ]
    guard = Middleware(Guard, hosts=hosts, token=token)
    packed = Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    return Starlette(routes=routes, middleware=[guard, packed], lifespan=running)


class Asked:
    """What pages ask of some storages.

    Args:
        library: The storages.
        writing: What may be exported, and where.
    """

    def __init__(self, library: Library, writing: Exports) -> None:
        self._library, self._writing = library, writing

    async def list(self, request: Request) -> Response:
        """All studies."""
        return await told(lambda: {"studies": self._library.listed(), "optuna": optuna_pages.offered()})

    async def page(self, request: Request) -> Response:
        """A study without its cards."""
        return await self._since(request, "", answers.study)

    async def card(self, request: Request) -> Response:
        """A card of a study."""
        card = request.path_params["card"]
        return await self._since(request, card, lambda read: answers.card(read.card(card)))

    async def trial(self, request: Request) -> Response:
        """A candidate's page, and where it may be exported."""
        into, number = self._writing.offered(*named(request)), request.path_params["trial"]
        return await self.study(request, lambda read: answers.trial(read, number) | {"exports": into})

    async def export(self, request: Request) -> Response:
        """Export a candidate."""
        try:
            wanted = json.loads(await request.body())
        except (ValueError, RecursionError):
            wanted = None
        return await told(lambda: self._writing.write(*named(request), wanted))

    async def within(self, request: Request) -> Response:
        """The trials whose figures are in ranges."""
        try:
            ranges = json.loads(request.query_params.get("ranges", ""))
        except (ValueError, RecursionError):
            ranges = None
        return await self.study(request, lambda read: answers.within(read, ranges))

    async def compare(self, request: Request) -> Response:
        """The cards of several studies in one."""
        wanted, known = request.query_params.getlist("study"), request.query_params.get("mark", "")
        named = [(place, name) for place, _, name in (study.partition(":") for study in wanted)]
        return await told(lambda: answers.comparison([(at, self._library.read(at, name)) for at, name in named], known))

    async def _since(self, request: Request, what: str, tell: Callable[[Read], Any]) -> Response:
        """What is new in an answer to a browser that has the one of a tag."""
        tag = request.query_params.get("tag")
        return await self.study(request, lambda read: read.sent.setdefault(what, Sent()).since(tag, tell(read)))

    async def study(self, request: Request, tell: Callable[[Read], Any]) -> Response:
        """What is to be told of a study."""
        place, name = named(request)
        return await told(lambda: tell(self._library.read(place, name)))

    async def events(self, request: Request) -> Response:
        """An event for every change of a study, for as long as somebody listens."""
        return StreamingResponse(self._changes(request), media_type="text/event-stream")

    async def _changes(self, request: Request) -> AsyncIterator[str]:
        (place, name), last = named(request), ""
        while not await request.is_disconnected():
            try:
                read = await run_in_threadpool(self._library.read, place, name)
                found = {"mark": read.mark, "running": read.running, "trials": len(read.history.trials)}
            except (Missing, MooptError) as error:
                found = {"error": str(error) if isinstance(error, MooptError) else "The study was removed."}
            now = json.dumps(found)
            yield f"data: {now}\n\n" if now != last else ": still here\n\n"
            last = now
            await asyncio.sleep(EVERY)


async def told(tell: Callable[[], Any]) -> Response:
    """An answer, found out in a thread; what stands against it, in a line."""
    try:
        return JSONResponse(await run_in_threadpool(tell), headers={"cache-control": "no-store"})
    except Missing:
        return JSONResponse({"error": "There is no such study, card or trial; it may have been removed."}, 404)
    except MooptError as error:
        return JSONResponse({"error": str(error)}, 503 if isinstance(error, StorageError) else 400)
    except Exception as error:  # a page says it; the traceback is for whoever started the dashboard
        logger.exception("An answer failed.")
        return JSONResponse({"error": f"This cannot be shown: {type(error).__name__}: {error}."}, 500)


def named(request: Request) -> tuple[str, str]:
    """The storage and the study that are meant: a name may have anything in it, so that it is no part of the path."""
    return request.path_params["place"], request.query_params.get("study", "")


def _prepare(library: Library) -> None:
    library.listed()
    optuna_pages.offered()
    pages.packed_plotly()
