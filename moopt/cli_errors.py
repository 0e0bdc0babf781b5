"""What goes wrong in a command: one line on standard error and an exit code, or a line of the log."""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import typer

from moopt import logs
from moopt.errors import MooptError, StorageInUse, StudyError

FAILED, BAD_INPUT, IN_USE, INTERRUPTED = 1, 2, 3, 130


class RunFailed(StudyError):
    """The study began and could not be finished."""


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The command; what goes wrong in it becomes one line on standard error and an exit code."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        debug = arguments["debug"]
        with _logged(arguments.get("log_json", False), debug):
            try:
                function(**arguments)
            except KeyboardInterrupt:
                say("Interrupted. What is finished is stored; the same command goes on from there.", logging.WARNING)
                raise typer.Exit(INTERRUPTED) from None
            except (typer.BadParameter, typer.Exit):
                raise
            except Exception as error:
                expected = isinstance(error, MooptError)
                what = str(error) if expected else f"{type(error).__name__}: {error} (--debug shows where)"
                trace = traceback.format_exc() if debug else ""
                say(f"{trace}Error: {what}", logging.ERROR)
                raise typer.Exit(_code(error)) from None

    return run


def _logged(as_json: bool, debug: bool) -> AbstractContextManager[None]:
    """Where the log goes: to standard error if it was asked for."""
    level = logging.DEBUG if debug else logging.INFO
    if as_json:
        return logs.lines(logs.JsonLines(), level)
    return logs.lines(logs.PlainLines(), level) if debug else nullcontext()


def say(text: str, level: int = logging.INFO) -> None:
    """Tell the user on standard error, or the log where that is what is read."""
    if logs.is_json():
        logging.getLogger("moopt").log(level, text)
    else:
        print(text, file=sys.stderr)


def _code(error: Exception) -> int:
    if isinstance(error, StorageInUse):
        return IN_USE
    return BAD_INPUT if isinstance(error, MooptError) and not isinstance(error, RunFailed) else FAILED
