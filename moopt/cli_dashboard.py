"""`moopt dashboard`: the cards of studies in a browser, live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moopt import cli_options as given
from moopt.cli_errors import say
from moopt.errors import StudyError


def dashboard(
    storage: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORAGE",
            help="Files or database URLs, or the file of a study, FILE.py[:NAME], for its storage. Left out: "
            "moopt.journal.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address. On any but this machine's own a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    exports: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where candidates of studies given by their files are exported."),
    ] = None,
    debug: given.Debug = False,
) -> None:
    """Show studies in a browser, live while they run. It reads storages and runs no code of theirs.

    Examples:
      moopt dashboard bits.journal

      moopt dashboard bits.journal postgresql://host/studies --port 9000

      moopt dashboard my_study.py --exports served
    """
    from moopt.cli_targets import DEFAULT_STORAGE, chosen
    from moopt.dashboard import serve
    from moopt.study import passive

    locations, studies = [], []
    with passive():  # a file may run its study as it is read
        for each in storage or [DEFAULT_STORAGE]:
            if each.partition(":")[0].endswith(".py"):
                studies.append(study := chosen(each, None))
                each = study.storage.location or ""
            locations.append(each)
    if exports is not None and not studies:
        raise StudyError("--exports needs the file of a study, FILE.py: what is exported is made from its problem.")
    if exports is not None and exports.exists() and not exports.is_dir():
        raise StudyError(f"--exports is {exports}, which is a file; expected a folder.")
    if not all(locations):
        raise StudyError("A study that is kept in memory alone cannot be shown; give it a storage.")
    serve(list(dict.fromkeys(locations)), host, port, say, studies, exports)
