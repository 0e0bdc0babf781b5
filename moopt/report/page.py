"""Cards as one HTML page that needs nothing from elsewhere. Computes no figures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from moopt import __version__
from moopt.history import History
from moopt.report import tables
from moopt.report.chosen import chosen
from moopt.report.files import replaced
from moopt.views import Card, look, summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""What a browser lets the report load: nothing that is not in it."""
MOST_CELLS = 15_000
"""Of a heat map that tells something on hovering."""


def write_report(history: History, path: str | os.PathLike[str], cards: Sequence[str] = ()) -> Path:
    """Write a study's cards as one HTML file that needs no network; an existing file is replaced in one step.

    Args:
        history: The study, finished or not.
        path: The file to write; its folder is made if there is none.
        cards: The names of some cards, such as "front"; none: all of them.

    Returns:
        The path written.

    Raises:
        ReportError: the study has no card of that name.
        StorageError: the file cannot be written.
    """
    text = page(history, chosen(history, cards).values())
    return replaced(Path(path), text.encode())


def write_cards(shown: Sequence[Card], path: str | os.PathLike[str], title: str) -> Path:
    """Write some cards as one HTML file that needs no network; an existing file is replaced in one step.

    Args:
        shown: The cards, in order.
        path: The file to write; its folder is made if there is none.
        title: What the page is called.

    Raises:
        StorageError: the file cannot be written.
    """
    text = document(title, heading(title), shown, drawing())
    return replaced(Path(path), text.encode())


def page(history: History, shown: Iterable[Card]) -> str:
    """Cards of a study under what was found, as text."""
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in summary.lines(history))
    found = "".join(f"<li>{escape(line)}</li>" for line in summary.findings(history))
    under = f"{lead}\n{f'<ul class=findings>{found}</ul>' if found else ''}"
    return document(history.name, heading(history.name, under), shown, drawing())


def heading(title: str, under: str = "") -> str:
    """What stands above the cards; `under` is HTML."""
    return f'<header>\n<p class="kicker">A moopt study</p>\n<h1>{escape(title)}</h1>\n{under}\n</header>'


def drawing() -> str:
    """The scripts that draw a page's figures: plotly, and what calls it."""
    return f"<script>{get_plotlyjs()}</script>\n<script>\n{resource('page.js')}</script>"


def document(title: str, head: str, shown: Iterable[Card], scripts: str, kind: str = "report") -> str:
    """A page as text.

    Args:
        title: What a browser calls it.
        head: HTML that stands above the cards.
        shown: The cards.
        scripts: HTML that draws them.
        kind: The class that its style goes by.
    """
    templates = {name: template.to_plotly_json() for name, template in look.TEMPLATES.items()}
    return f"""<!doctype html>
<html lang="en" class="{kind}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="moopt {__version__}">
<title>{escape(title)}</title>
<style>
{_style()}</style>
</head>
<body>
<main>
{head}
{"".join(map(_section, shown))}
<footer>Written by moopt {__version__}. This file needs no network.</footer>
</main>
<script type="application/json" id="templates">{_inline(templates)}</script>
{scripts}
</body>
</html>
"""


def _style() -> str:
    """The style that the dashboard has too, and what a file and a cell need beyond it."""
    return files("moopt.views").joinpath("page.css").read_text(encoding="utf-8") + resource("report.css")


def resource(name: str) -> str:
    """A file of this package as text."""
    return files("moopt.report").joinpath(name).read_text(encoding="utf-8")


def _section(card: Card) -> str:
    inside = f"<h2>{escape(card.title)}</h2>\n<p>{escape(card.sentence)}</p>\n"
    if not card.applies:
        return f'<section>\n{inside}<p class="reason">{escape(card.reason)}</p>\n</section>\n'
    table = "" if card.table.empty else _table(card)
    if card.figure is not None:
        data = _inline(_light(json.loads(card.figure.to_json())))
        height = int(card.figure.layout.height or 450)
        inside += (
            f'<div class="figure" style="height:{height}px"><script type="application/json">{data}</script></div>\n'
        )
        lines = f"{len(card.table):,} {'line' if len(card.table) == 1 else 'lines'}"
        wide = " class=wide" if card.table.shape[1] > tables.WIDE else ""
        table = table and f"<details{wide}><summary>The figures as a table ({lines})</summary>{table}</details>"
    return f"<section>\n{inside}{table}\n</section>\n"


def _table(card: Card) -> str:
    left_out = tables.cut(card.table)
    note = f'<p class="cut">{escape(left_out)}</p>' if left_out else ""
    return f'{note}<div class="scroll" tabindex="0">{tables.html(card.table)}</div>'


def _light(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure without what its largest heat maps tell on hovering: a text a cell weighs more than all the rest."""
    for trace in figure["data"]:
        if trace["type"] == "heatmap" and sum(map(len, trace.get("hovertext", ()))) > MOST_CELLS:
            trace["hoverinfo"] = "skip"
            del trace["hovertext"]
    return figure


def _inline(value: object) -> str:
    """JSON that may stand inside a script element, whatever names are in it: nothing there can end or begin one."""
    return re.sub(r"<(?=[/!s])", r"\\u003c", json.dumps(value, separators=(",", ":")), flags=re.IGNORECASE)
