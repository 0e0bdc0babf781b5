"""The log of a run for programs: one JSON object a line on standard error, in place of the live display."""

from __future__ import annotations

import json
import logging
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


@contextmanager
def json_lines(file: TextIO | None = None) -> Iterator[None]:
    """While open, what moopt logs from INFO on goes to `file` (standard error) as JSON lines, and only there."""
    logger = logging.getLogger("moopt")
    handler = logging.StreamHandler(file or sys.stderr)
    handler.setFormatter(JsonLines())
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
