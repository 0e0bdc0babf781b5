"""`moopt report`: a study's cards as one offline page, as Markdown, or as pictures for papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moopt import cli_options as given
from moopt.cli_output import print_json
from moopt.errors import ReportError

if TYPE_CHECKING:
    from moopt.history import History

Format = Literal["html", "md", "png", "svg", "pdf"]
OUT: dict[Format, Path] = {
    "html": Path("report.html"),
    "md": Path("report.md"),
    "png": Path("pictures"),
    "svg": Path("pictures"),
    "pdf": Path("pictures"),
}
"""Where each format goes if nobody says."""


def report(
    storage: given.Stored,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where to write it: a file, or a folder for several pictures. Left out: "
                     "report.html, report.md or pictures."),
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="One page, Markdown with pictures, or pictures alone. Left out: by PATH.")
    ] = None,
    cards: Annotated[
        list[str] | None, typer.Option("--card", metavar="NAME", help="Only this card, such as front. May be repeated.")
    ] = None,
    width: Annotated[
        float, typer.Option("--width-cm", help="How wide pictures are printed: 8.5 for a column, 17 for a page.")
    ] = 17.0,
    name: given.Named = None,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:  # fmt: skip
    """Write a study's report: one HTML file that opens without a network, or Markdown, or pictures for a paper.

    Examples:
      moopt report bits.journal

      moopt report bits.journal --out bits.md

      moopt report bits.journal --format svg --out figures --width-cm 8.5

      moopt report bits.journal --card front --out front.pdf
    """
    from moopt.study import load_history

    kind, place = _asked(out, format, cards or [])
    history = load_history(storage, name)
    written = _write(history, kind, place, cards or [], width)
    if as_json:
        print_json({"study": history.name, "report": str(place), "files": [str(path) for path in written]})
    else:
        print(*(f"Wrote {path}" for path in written), sep="\n")


def _asked(out: Path | None, format: Format | None, cards: list[str]) -> tuple[Format, Path]:
    """The format and where it goes.

    Raises:
        ReportError: the path names no format, another one, or one file for several pictures.
    """
    if out is None:
        return format or "html", OUT[format or "html"]
    ending = next((known for known in OUT if out.suffix == f".{known}"), None)
    kind = format or ending
    if kind is None:
        raise ReportError(f"Got the path {out}; expected one that ends in .{', .'.join(OUT)}, or --format beside it.")
    if ending is not None and kind != ending:
        raise ReportError(f"Got the path {out} and the format {kind}; leave one of them out.")
    if ending in ("png", "svg", "pdf") and len(cards) != 1:
        raise ReportError(f"{out} is one picture: name its card, --card front, or give a folder and --format {kind}.")
    return kind, out


def _write(history: History, kind: Format, place: Path, cards: list[str], width: float) -> list[Path]:
    from moopt.report import write_markdown, write_picture, write_pictures, write_report

    match kind:
        case "html":
            return [write_report(history, place, cards)]
        case "md":
            return [write_markdown(history, place, cards)]
        case _ if place.suffix == f".{kind}":
            return [write_picture(history, place, cards[0], width)]
        case _:
            return write_pictures(history, place, kind, cards, width)
