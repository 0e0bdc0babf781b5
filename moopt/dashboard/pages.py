"""What every page is made of: one HTML file, its scripts and styles, plotly out of its wheel. Nothing of a study."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from moopt.views import look

STATIC = Path(str(files("moopt.dashboard").joinpath("static")))
LONG = {"cache-control": "max-age=86400", "vary": "accept-encoding"}


def routes() -> list[BaseRoute]:
    """Where they are."""
    named = [Route(path, page) for path in ("/", "/study", "/compare")]
    served = [Route("/plotly.js", plotly), Route("/templates.json", templates), Route("/page.css", style)]
    return [*named, *served, Mount("/static", StaticFiles(directory=STATIC))]


async def page(request: Request) -> Response:
    """Every page: which one it is, its script reads from the address."""
    return HTMLResponse((STATIC / "index.html").read_text(encoding="utf-8"), headers={"cache-control": "no-cache"})


async def plotly(request: Request) -> Response:
    """Plotly, compressed once."""
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed_plotly(), media_type="text/javascript", headers={**LONG, "content-encoding": "gzip"})
    return Response(get_plotlyjs(), media_type="text/javascript", headers=LONG)


async def style(request: Request) -> Response:
    """How the report looks, which the dashboard looks like."""
    return Response(files("moopt.views").joinpath("page.css").read_text(encoding="utf-8"), media_type="text/css")


async def templates(request: Request) -> Response:
    """How figures look in the light and in the dark."""
    return JSONResponse({name: template.to_plotly_json() for name, template in look.TEMPLATES.items()})


@cache
def packed_plotly() -> bytes:
    """Plotly as it is sent."""
    return gzip.compress(get_plotlyjs().encode(), 6)
