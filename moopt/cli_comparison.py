"""`moopt compare`: several studies in one HTML file, front against front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moopt import cli_options as given
from moopt.cli_output import print_json, print_table
from moopt.errors import ReportError, StudyError

if TYPE_CHECKING:
    from moopt.history import History


def compare(
    storages: Annotated[list[str], typer.Argument(metavar="STORAGE...", help="Files or database URLs.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--study", metavar="NAME", help="Which of their studies; may be repeated. Left out: all."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where to write it.")] = Path("comparison.html"),
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Compare studies of the same objectives: fronts, progress, what all seeds attain, and who dominates whom.

    Examples:
      moopt compare nsga2.journal qnehvi.journal

      moopt compare bits.journal --study seed-0 --study seed-1 --out seeds.html
    """
    from moopt.report import write_cards
    from moopt.views import comparison

    if out.suffix != ".html":
        raise ReportError(f"Got the path {out}; a comparison is one HTML file: expected a path that ends in .html.")
    histories = _chosen(storages, names)
    cards = comparison(histories)
    write_cards(cards, out, "Studies compared")
    table = cards[-1].table
    if as_json:
        print_json({"path": str(out), "studies": table.to_dict("records")})
        return
    print_table(list(table.columns), list(table.itertuples(index=False)), f"{len(histories)} studies")
    print(f"Wrote {out}")


def _chosen(storages: list[str], names: list[str] | None) -> list[History]:
    """The studies of those names, or all, in the order of the storages.

    Raises:
        StudyError: a name is in none of the storages, or there are fewer than two studies.
    """
    from moopt.storage import Storage

    found, there = [], []
    for location in storages:
        storage = Storage(location)
        storage.open()
        there += storage.studies()
        for name in storage.studies():
            stored = storage.find(name) if names is None or name in names else None
            found += [] if stored is None else [stored.history()]
    if missing := [name for name in names or () if name not in there]:
        raise StudyError(f"There is no study {', '.join(missing)}; there are {', '.join(there) or 'none'}.")
    if len(found) < 2:
        has = ", ".join(repr(each.name) for each in found) or "no study"
        raise StudyError(f"Got {has} in {', '.join(storages)}; expected two studies or more to compare.")
    return found
