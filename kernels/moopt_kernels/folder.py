"""Where compiled kernels and measured launch configurations are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder kernels under $MOOPT_CACHE, else under moopt in $XDG_CACHE_HOME or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MOOPT_CACHE") or home / "moopt") / "kernels"
