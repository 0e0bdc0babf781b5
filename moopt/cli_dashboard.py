"""`moopt dashboard`: the cards of studies in a browser, live."""

from __future__ import annotations

from typing import Annotated

import typer

from moopt import cli_options as given
from moopt.cli_errors import say


def dashboard(
    storage: Annotated[
        list[str] | None, typer.Argument(metavar="STORAGE", help="Files or database URLs. Left out: moopt.journal.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address. On any but this machine's own a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    debug: given.Debug = False,
) -> None:
    """Show studies in a browser, live while they run. It reads storages and runs no code of theirs.

    Examples:
      moopt dashboard bits.journal

      moopt dashboard bits.journal postgresql://host/studies --port 9000
    """
    from moopt.cli_targets import DEFAULT_STORAGE
    from moopt.dashboard import serve

    serve(storage or [DEFAULT_STORAGE], host, port, say)
