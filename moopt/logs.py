"""The log of a run on standard error: one JSON object a line for programs, or plain lines. Not the live display."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

EXTRA = ("worker", "trial", "kind", "state", "values", "seconds", "tokens")
"""What moopt's records may carry beside their message."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, and what the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in EXTRA if hasattr(record, name)}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class PlainLines(logging.Formatter):
    """A record as its message, after the name of the worker it is from."""

    def format(self, record: logging.LogRecord) -> str:
        worker = getattr(record, "worker", None)
        return super().format(record) if worker is None else f"{worker}: {super().format(record)}"


@contextmanager
def lines(formatter: logging.Formatter, level: int = logging.INFO, file: TextIO | None = None) -> Iterator[None]:
    """While open, what moopt logs from a level on goes to `file` (standard error) line by line, and only there.

    At the level DEBUG that is also what workers print.
    """
    logger = logging.getLogger("moopt")
    handler = logging.StreamHandler(file or sys.stderr)
    handler.setFormatter(formatter)
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def is_json() -> bool:
    """Whether the log is JSON now, so that all that is said has to be."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger("moopt").handlers)


def announce(text: str) -> None:
    """A line on standard error at once and past all buffers, as a signal's handler may write it."""
    log = logging.getLogger("moopt")
    record = log.makeRecord(log.name, logging.WARNING, "", 0, text, (), None)
    said = JsonLines().format(record) if is_json() else f"\n{text}"  # a terminal has just shown ^C
    os.write(2, f"{said}\n".encode())
