"""Cards as pictures for papers: PNG, SVG and PDF at the width they are printed in. Kaleido and a Chromium draw them."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Literal, get_args

import plotly.graph_objects as go

from moopt.errors import ReportError
from moopt.history import History
from moopt.report.chosen import chosen
from moopt.report.files import replaced
from moopt.views import Card, look

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)

COLUMN_CM, PAGE_CM = 8.5, 17.0
"""What a paper's column and its page are wide."""
NARROWEST_CM, WIDEST_CM = 6.0, 60.0
PIXELS_PER_CM = 96 / 2.54
"""Of CSS: letters of 12 pixels are then printed as letters of 9 points."""
DOTS_PER_INCH = 300
TALLEST_CM = 24.0
"""What fits a page."""
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
"""Fonts of one another's measure, so that text fits wherever an SVG is opened."""
INSTALL = "run: pip install 'moopt[pictures]'"
BROWSER = "install one (Debian: apt-get install chromium), or name it in the environment variable BROWSER_PATH"


def write_pictures(
    history: History,
    folder: str | os.PathLike[str],
    format: Format = "svg",
    cards: Sequence[str] = (),
    width_cm: float = PAGE_CM,
) -> list[Path]:
    """Write a study's figures into a folder, a file a card, such as `front.svg`; files of these names are replaced.

    Args:
        history: The study, finished or not.
        folder: Where; made if there is none.
        format: "png", "svg" or "pdf".
        cards: The names of some cards, such as "front"; none: all that have a figure.
        width_cm: How wide they will be printed: 8.5 for a column, 17 for a page.

    Returns:
        The paths written.

    Raises:
        ReportError: the study has no such card or the card no figure, or there is nothing here that draws pictures.
        StorageError: a file cannot be written.
    """
    shown = chosen(history, cards)
    if cards:
        for name, card in shown.items():
            _figure(name, card)
    figures = {name: card.figure for name, card in shown.items() if card.figure is not None}
    made = drawn(figures, format, width_cm)
    return [replaced(Path(folder) / f"{name}.{format}", picture) for name, picture in made.items()]


def write_picture(history: History, path: str | os.PathLike[str], card: str, width_cm: float = PAGE_CM) -> Path:
    """Write a card's figure as a file whose name ends in .png, .svg or .pdf; one that is there is replaced.

    Args:
        history: The study, finished or not.
        path: The file; its folder is made if there is none.
        card: The name of a card, such as "front".
        width_cm: How wide it will be printed: 8.5 for a column, 17 for a page.

    Raises:
        ReportError: the study has no such card or the card no figure, the name ends otherwise, or there is nothing here
            that draws pictures.
        StorageError: the file cannot be written.
    """
    ending = Path(path).suffix.removeprefix(".")
    format = next((known for known in FORMATS if known == ending), None)
    if format is None:
        raise ReportError(f"Got the path {path}; expected a name that ends in .png, .svg or .pdf.")
    figure = _figure(card, chosen(history, [card])[card])
    return replaced(Path(path), drawn({card: figure}, format, width_cm)[card])


def drawn(figures: Mapping[str, go.Figure], format: Format, width_cm: float = PAGE_CM) -> dict[str, bytes]:
    """Figures as pictures on white, by their names.

    Raises:
        ReportError: the width is none that is printed, or there is nothing here that draws pictures.
    """
    if not (math.isfinite(width_cm) and NARROWEST_CM <= width_cm <= WIDEST_CM):
        raise ReportError(f"Got a width of {width_cm} cm; expected {NARROWEST_CM:g} to {WIDEST_CM:g}.")
    prepared = {name: _printed(figure, round(width_cm * PIXELS_PER_CM)) for name, figure in figures.items()}
    if not prepared:
        return {}
    with ThreadPoolExecutor(1) as apart:  # a notebook has a loop of its own
        return apart.submit(lambda: asyncio.run(_drawn(prepared, format))).result()


async def _drawn(figures: Mapping[str, go.Figure], format: Format) -> dict[str, bytes]:
    try:
        from choreographer.errors import BrowserClosedError, BrowserDepsError, BrowserFailedError, ChromeNotFoundError
        from kaleido import Kaleido
        from kaleido.errors import JavascriptError, KaleidoError
    except ImportError as error:
        raise ReportError(f"Pictures need the package kaleido and a Chrome or Chromium; {INSTALL}.") from error
    options = {"format": format, "scale": DOTS_PER_INCH / 96 if format == "png" else 1}
    try:
        async with Kaleido(mathjax=False) as browser:  # with it, a script would be fetched from elsewhere
            return {name: await browser.calc_fig(figure, opts=options) for name, figure in figures.items()}
    except ChromeNotFoundError as error:
        raise ReportError(f"Pictures are drawn by a Chrome or Chromium, and there is none here; {BROWSER}.") from error
    except (
        BrowserClosedError, BrowserDepsError, BrowserFailedError, JavascriptError, KaleidoError, TimeoutError,
    ) as error:  # fmt: skip
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ReportError(f"The Chrome or Chromium here drew no picture: {said}. Try another: {BROWSER}.") from error


def _printed(figure: go.Figure, width: int) -> go.Figure:
    """A figure as it is printed: on white, in fonts that everyone has, `width` pixels wide and lower where narrow."""
    template = deepcopy(look.TEMPLATES["light"])
    template.layout.update(font={"family": FONT}, paper_bgcolor="#ffffff")
    height = (figure.layout.height or 450) * min(1.0, max(0.8, width / 600))
    return go.Figure(figure).update_layout(
        template=template, width=width, height=round(min(height, TALLEST_CM * PIXELS_PER_CM))
    )


def _figure(name: str, card: Card) -> go.Figure:
    """A card's figure, or why there is none."""
    if card.figure is None:
        why = card.reason or "it is a table."
        raise ReportError(f"The card {name!r} has no picture: {why}")
    return card.figure
