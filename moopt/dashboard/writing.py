"""The only thing that the dashboard writes: exports of studies that it was started with, into one folder."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moopt.dashboard.library import key
from moopt.errors import ExportError
from moopt.study import Study

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""What a new folder may be called: nothing that leads elsewhere, or hides."""


class Exports:
    """Exports candidates into a folder.

    Args:
        studies: Whose candidates: their problems come from whoever started the dashboard, never from a storage.
        folder: Where; None: nowhere.
    """

    def __init__(self, studies: Sequence[Study], folder: Path | None) -> None:
        self._studies = {(key(str(study.storage.location)), study.name): study for study in studies}
        self._folder, self._lock = folder, threading.Lock()

    def offered(self, place: str, name: str) -> str | None:
        """The folder that a study's candidates can be exported into; None if they cannot."""
        return str(self._folder) if self._folder is not None and (place, name) in self._studies else None

    def write(self, place: str, name: str, asked: Any) -> dict[str, Any]:
        """Export a candidate.

        Args:
            place: The storage.
            name: The study.
            asked: What a page sent: `trial`, `format` and `folder`.

        Raises:
            ExportError: it cannot be exported so, or nothing can be from here.
            StudyError: there is no such completed trial.
        """
        if self._folder is None or (place, name) not in self._studies:
            raise ExportError("Start the dashboard with the study's file and --exports FOLDER to export from here.")
        wanted = asked if isinstance(asked, dict) else {}
        trial, format, folder = (wanted.get(each) for each in ("trial", "format", "folder"))
        if not isinstance(trial, int) or isinstance(trial, bool) or not isinstance(format, str):
            raise ExportError(f"Got trial={trial!r} and format={format!r}; expected a number and a name.")
        if not isinstance(folder, str) or not NAME.fullmatch(folder):
            raise ExportError(
                f"Got the folder {folder!r}; expected letters, digits, dashes, dots and underscores, at most 100."
            )
        with self._lock:  # a problem's models are one candidate at a time
            found = self._studies[place, name].export(trial, format, self._folder / folder)
        return {"path": str(found.path), "serve": found.serve, "notes": found.manifest["notes"]}
