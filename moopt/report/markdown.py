"""Cards as Markdown, with the pictures in a folder beside it: for wikis, issues and model cards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from moopt.history import History
from moopt.report import tables
from moopt.report.chosen import chosen
from moopt.report.files import replaced
from moopt.report.pictures import drawn
from moopt.report.tables import plain
from moopt.views import Card, summary

MOST_LINES = 60
"""Lines of a table: nobody scrolls one inside a text."""


def write_markdown(history: History, path: str | os.PathLike[str], cards: Sequence[str] = ()) -> Path:
    """Write a study's cards as Markdown, and their pictures as PNG into `<name>-pictures` beside it.

    What is there is replaced file by file, the text last, so that it never shows what is not there.

    Args:
        history: The study, finished or not.
        path: The file to write; its folder is made if there is none.
        cards: The names of some cards, such as "front"; none: all of them.

    Returns:
        The path written.

    Raises:
        ReportError: the study has no card of that name, or there is nothing here that draws pictures.
        StorageError: a file cannot be written.
    """
    place, shown = Path(path), chosen(history, cards)
    folder = place.with_name(f"{place.stem}-pictures")
    pictures = drawn({name: card.figure for name, card in shown.items() if card.figure is not None}, "png")
    for name, picture in pictures.items():
        replaced(folder / f"{name}.png", picture)
    text = "\n\n".join(_parts(history, shown, folder.name)) + "\n"
    return replaced(place, text.encode())


def _parts(history: History, shown: Mapping[str, Card], folder: str) -> Iterator[str]:
    """The text, block by block."""
    yield f"# {plain(history.name)}"
    yield from (plain(line) for line in summary.lines(history))
    if found := summary.findings(history):
        yield "\n".join(f"- {plain(line)}" for line in found)
    for name, card in shown.items():
        yield f"## {plain(card.title)}"
        yield plain(card.sentence)
        if not card.applies:
            yield plain(card.reason)
        if card.figure is not None:
            yield f"![{plain(card.title)}]({quote(f'{folder}/{name}.png')})"
        if not card.table.empty:
            yield from _table(card)


def _table(card: Card) -> Iterator[str]:
    lines, columns = card.table.shape
    if columns > tables.WIDE and card.figure is not None:
        yield f"The table has {lines:,} lines and {columns:,} columns, too many to read here: the HTML report has it."
        return
    if left_out := tables.cut(card.table, MOST_LINES):
        yield left_out
    yield tables.markdown(card.table, MOST_LINES)
