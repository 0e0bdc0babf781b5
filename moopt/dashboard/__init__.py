"""The dashboard: a study's cards in a browser, live, from any storage. It reads; it runs no code of a storage."""

from __future__ import annotations

from moopt.dashboard.app import create
from moopt.dashboard.serving import serve

__all__ = ["create", "serve"]
