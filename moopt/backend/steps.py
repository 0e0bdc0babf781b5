"""Says how far a long preparation is: a bar on a terminal, lines in the log elsewhere. Silent if it is short."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress

logger = logging.getLogger("moopt")

QUIET = 3.0
"""Seconds after which something takes long."""
LINE_EVERY = 10.0
"""Seconds between two lines of the log."""

T = TypeVar("T")


def steps(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items one by one; says how many are done, if that takes long.

    Args:
        items: What is worked on.
        doing: What is done with them, such as "Quantizing".
    """
    console = Console(stderr=True)
    alone = console.is_terminal and not isinstance(sys.stderr, FileProxy)  # no other display is open on it
    bar = Progress(console=console, transient=True)
    task = bar.add_task(doing, total=len(items))
    began = said = time.monotonic()
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if alone and now - began > QUIET:
                bar.start()
                bar.update(task, completed=done)
            elif now - said > LINE_EVERY:
                said = now
                logger.info("%s: %d of %d.", doing, done, len(items))
            yield item
    finally:
        if bar.live.is_started:
            bar.stop()
