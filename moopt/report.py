"""A study as files to hand on: one offline HTML report of its cards, and the front as CSV. Computes no figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from moopt import __version__
from moopt.errors import StorageError
from moopt.history import History
from moopt.views import Card, cards, look, summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""What a browser lets the report load: nothing that is not in it."""


def write_report(history: History, path: str | os.PathLike[str]) -> Path:
    """Write a study's cards as one HTML file that needs no network; an existing file is replaced in one step.

    Args:
        history: The study, finished or not.
        path: The file to write; its folder is made if there is none.

    Returns:
        The path written.

    Raises:
        StorageError: the file cannot be written.
    """
    return _replace(Path(path), lambda place: place.write_text(page(history), encoding="utf-8"))


def write_cards(shown: Sequence[Card], path: str | os.PathLike[str], title: str) -> Path:
    """Write some cards as one HTML file that needs no network; an existing file is replaced in one step.

    Args:
        shown: The cards, in order.
        path: The file to write; its folder is made if there is none.
        title: What the page is called.

    Raises:
        StorageError: the file cannot be written.
    """
    return _replace(Path(path), lambda place: place.write_text(_page(title, "", shown), encoding="utf-8"))


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
    return _replace(Path(path), lambda place: table.to_csv(place, index_label="trial"))


def page(history: History) -> str:
    """The report as text."""
    lead = "".join(f'<p class="lead">{escape(line)}</p>' for line in summary.lines(history))
    found = "".join(f"<li>{escape(line)}</li>" for line in summary.findings(history))
    under = f"{lead}\n{f'<ul class=findings>{found}</ul>' if found else ''}"
    return _page(history.name, under, cards(history))


def _page(title: str, under: str, shown: Sequence[Card]) -> str:
    """A page of cards as text; `under` is what stands under its title, as HTML."""
    resources = files("moopt.views")
    style, script = (resources.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    templates = {name: template.to_plotly_json() for name, template in look.TEMPLATES.items()}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="moopt {__version__}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="kicker">A moopt study</p>
<h1>{escape(title)}</h1>
{under}
</header>
{"".join(map(_section, shown))}
<footer>Written by moopt {__version__}. This file needs no network.</footer>
</main>
<script type="application/json" id="templates">{_inline(json.dumps(templates))}</script>
<script>{get_plotlyjs()}</script>
<script>
{script}</script>
</body>
</html>
"""


def _section(card: Card) -> str:
    inside = f"<h2>{escape(card.title)}</h2>\n<p>{escape(card.sentence)}</p>\n"
    if not card.applies:
        return f'<section>\n{inside}<p class="reason">{escape(card.reason)}</p>\n</section>\n'
    table = "" if card.table.empty else f'<div class="scroll" tabindex="0">{_table(card.table)}</div>'
    if card.figure is not None:
        data = _inline(card.figure.to_json())
        height = int(card.figure.layout.height or 450)
        inside += (
            f'<div class="figure" style="height:{height}px"><script type="application/json">{data}</script></div>\n'
        )
        lines = f"{len(card.table):,} {'line' if len(card.table) == 1 else 'lines'}"
        table = table and f"<details><summary>The figures as a table ({lines})</summary>{table}</details>"
    return f"<section>\n{inside}{table}\n</section>\n"


def _table(table: pd.DataFrame) -> str:
    """A table as HTML: numbers to the right with the decimals their column needs, all text escaped."""
    columns = [_column(table.iloc[:, i]) for i in range(table.shape[1])]
    head = "".join(
        f"<th{kind}>{escape(str(name))}</th>" for name, (kind, _) in zip(table.columns, columns, strict=True)
    )
    lines = zip(*(cells for _, cells in columns), strict=True)
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _column(column: pd.Series[Any]) -> tuple[str, list[str]]:
    """The attribute of a column's head, and its cells."""
    values = column.tolist()
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        texts = ["–" if value is None else str(value) for value in values]
        return "", [f"<td{' class=long' if len(text) > 24 else ''}>{escape(text)}</td>" for text in texts]
    if pd.api.types.is_integer_dtype(column):
        texts = [f"{value:,}" for value in values]
    else:
        digits = _decimals(values)
        texts = [f"{value:,.{digits}f}" if math.isfinite(value) else "–" for value in values]
    return " class=n", [f"<td class=n>{text}</td>" for text in texts]


def _decimals(values: list[float]) -> int:
    """The decimals that show four digits of a column's median magnitude and two of its least, at most six."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return 0
    median, least = (math.floor(math.log10(size)) for size in (sizes[len(sizes) // 2], sizes[0]))
    return min(max(min(3 - median, 4), 1 - least, 0), 6)


def _inline(text: str) -> str:
    """JSON that may stand inside a script element, whatever names are in it."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside `path` under a temporary name, then rename: nobody ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Give another path.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
