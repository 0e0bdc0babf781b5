"""Tables as text: numbers with the decimals their column needs, names never markup. Also the front as CSV."""

from __future__ import annotations

import math
import os
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moopt.history import History
from moopt.report.files import replaced

MOST_LINES, MOST_COLUMNS = 500, 60
"""What is written of a table, from its beginning."""
WIDE = 14
"""Columns from which a table does not fit a page of paper."""


class Column(NamedTuple):
    """A column as text.

    Attributes:
        name: Its heading.
        cells: Its values.
        numbers: Whether they are numbers, which stand to the right.
    """

    name: str
    cells: list[str]
    numbers: bool


def front_csv(history: History, path: str | os.PathLike[str]) -> Path:
    """Write the front as CSV: one line a point, with its objectives, measurements and decisions (`config.<name>`).

    Raises:
        StorageError: the file cannot be written.
    """
    front = history.front()
    names = dict.fromkeys(name for trial in front for name in trial.config)
    decided = {f"config.{name}": [trial.config.get(name) for trial in front] for name in names}
    table = history.frame(front)
    table = table.join(pd.DataFrame(decided, index=table.index, dtype=object))
    return replaced(Path(path), table.to_csv(index_label="trial").encode())


def columns(table: pd.DataFrame, most: int = MOST_LINES) -> list[Column]:
    """The first columns of a table, of its first lines."""
    shown = table.iloc[:most, :MOST_COLUMNS]
    return [_column(str(name), shown.iloc[:, i]) for i, name in enumerate(shown.columns)]


def cut(table: pd.DataFrame, most: int = MOST_LINES) -> str:
    """A sentence on what is left out of a large table; empty for one that is whole."""
    sides = zip(table.shape, (most, MOST_COLUMNS), ("lines", "columns"), strict=True)
    left_out = [f"first {limit:,} of {there:,} {what}" for there, limit, what in sides if there > limit]
    if not left_out:
        return ""
    everything = "study.trials() has every trial, and moopt front --csv writes every decision of the front"
    return f"These are the {' and the '.join(left_out)}; {everything}."


def html(table: pd.DataFrame) -> str:
    """The beginning of a table as HTML, all text escaped."""
    found = columns(table)
    kinds = [" class=n" if column.numbers else "" for column in found]
    head = "".join(f"<th{kind}>{escape(column.name)}</th>" for kind, column in zip(kinds, found, strict=True))
    drawn = [[_cell(column, text) for text in column.cells] for column in found]
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in zip(*drawn, strict=True))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def markdown(table: pd.DataFrame, most: int = MOST_LINES) -> str:
    """The beginning of a table as Markdown, all text escaped."""
    found = columns(table, most)
    head, rule = [plain(column.name) for column in found], ["--:" if column.numbers else ":--" for column in found]
    lines = zip(*([plain(text) for text in column.cells] for column in found), strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is: no markup, no HTML, on one line."""
    marked = re.sub(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))
    return marked.replace("&", "&amp;").replace("<", "&lt;")


def _cell(column: Column, text: str) -> str:
    kind = " class=n" if column.numbers else " class=long" if len(text) > 24 else ""
    return f"<td{kind}>{escape(text)}</td>"


def _column(name: str, column: pd.Series[Any]) -> Column:
    values = column.tolist()
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return Column(name, ["–" if value is None else str(value) for value in values], numbers=False)
    if pd.api.types.is_integer_dtype(column):
        return Column(name, [f"{value:,}" for value in values], numbers=True)
    digits = _decimals(values)
    return Column(name, [f"{v:,.{digits}f}" if math.isfinite(v) else "–" for v in values], numbers=True)


def _decimals(values: list[float]) -> int:
    """The decimals that show four digits of a column's median magnitude and two of its least, at most six."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return 0
    median, least = (math.floor(math.log10(size)) for size in (sizes[len(sizes) // 2], sizes[0]))
    return min(max(min(3 - median, 4), 1 - least, 0), 6)
