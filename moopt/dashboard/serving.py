"""Serves the dashboard: on this machine alone, or with a token on another address."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from moopt.dashboard.app import LOOPBACK, create
from moopt.errors import StorageError
from moopt.study import Study

EVERYWHERE = ("0.0.0.0", "::")
"""Addresses to listen at that nobody can open."""


def serve(
    locations: Sequence[str], host: str = "127.0.0.1", port: int = 8080, say: Callable[[str], None] = print,
    studies: Sequence[Study] = (), exports: Path | None = None,
) -> None:  # fmt: skip
    """Serve until it is interrupted.

    Args:
        locations: Storages: paths and database URLs.
        host: The address; on any but a loopback one a token is needed, and printed.
        port: The port; 0 takes a free one.
        say: Gets the address to open.
        studies: Studies of these storages whose candidates may be exported.
        exports: The folder that they are exported into; None: nothing is written.

    Raises:
        StorageError: the address cannot be used.
    """
    import uvicorn

    if not host:
        raise StorageError("Got an empty --host; expected an address, such as 127.0.0.1 or 0.0.0.0 for all.")
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise StorageError(f"Cannot listen at {host}, port {port}: {error.strerror}. Give another {other}.") from error
    names = LOOPBACK if token is None else None
    reached = socket.gethostname() if host in EVERYWHERE else host
    shown = f"[{reached}]" if ":" in reached else reached
    address = f"http://{shown}:{listening.getsockname()[1]}/{f'?token={token}' if token else ''}"
    say(f"The dashboard is at {address}  (Ctrl-C ends it)")
    config = uvicorn.Config(create(locations, names, token, studies, exports), log_level="warning", access_log=False)
    uvicorn.Server(config).run([listening])
