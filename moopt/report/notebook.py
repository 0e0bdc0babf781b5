"""Cards in a notebook, and where there is none as a page on the disk. Classic, JupyterLab and VS Code; no network."""

from __future__ import annotations

import base64
import gzip
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from moopt.history import History
from moopt.report.chosen import chosen
from moopt.report.page import document, heading, resource, write_report
from moopt.views import Card

HEIGHT = 640
"""Pixels until the page inside says how high it is."""


def show(history: History, names: Sequence[str] = ()) -> None:
    """Show cards below the cell; outside of a notebook write them as a page and say where.

    Raises:
        ReportError: the study has no card of that name.
    """
    cards = list(chosen(history, names).values())
    if not _in_notebook():
        name = re.sub(r"[^\w.-]+", "-", history.name).strip(".-") or "study"
        print(f"Wrote {write_report(history, Path(tempfile.mkdtemp(prefix='moopt-')) / f'{name}.html', names)}")
        return
    from IPython.display import display

    display(bundle(cards, "" if names else heading(history.name)), raw=True)


def bundle(cards: Sequence[Card], head: str = "") -> dict[str, str]:
    """Cards as a cell's output: a frame with a page of its own, so that no style leaks in or out; and as plain text."""
    title = ", ".join(card.title for card in cards)
    inside = document(title, head, cards, _drawing(), kind="cell")
    drawn = (
        f'<iframe title="{escape(title)}" srcdoc="{escape(inside)}" '
        f'style="width:100%;height:{HEIGHT}px;border:0;display:block"></iframe>'
    )
    told = "\n".join(f"{card.title}: {card.reason or card.sentence}" for card in cards)
    return {"text/html": drawn, "text/plain": told}


@cache
def _drawing() -> str:
    """The scripts that draw a page's figures, compressed: every output of a notebook has its own."""
    code = f"{get_plotlyjs()}\n;{resource('page.js')}\n{resource('cell.js')}"
    packed = base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()
    return f'<script type="text/plain" id="packed">{packed}</script>\n<script>\n{resource("unpack.js")}</script>'


def _in_notebook() -> bool:
    """Whether a kernel runs this."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
