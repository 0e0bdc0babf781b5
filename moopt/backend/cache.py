"""Where the backend keeps what it need not compute twice."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """The cache: $MOOPT_CACHE, else moopt under $XDG_CACHE_HOME or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MOOPT_CACHE") or home / "moopt")
