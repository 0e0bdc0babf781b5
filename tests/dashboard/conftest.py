"""A dashboard that is served, and a browser that looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import moopt
from moopt.dashboard import create
from moopt.testing.landscapes import Landscape
from tests.backend.conftest import byte_tokenizer, save, tiny

__all__ = ["byte_tokenizer", "save", "tiny"]

HOSTILE = 'a <b>"study"</b> & <script>alert(1)</script>/../x'
"""A name that would do harm where names are HTML or paths."""


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[..., str]]:
    """Serves storages; gives the address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(*locations: str, **how: Any) -> str:
        config = uvicorn.Config(create(list(locations), **how), port=0, log_level="error", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        running.append((server, thread))
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, _ in running:
        server.should_exit = True
        server.force_exit = True
    for _, thread in running:
        thread.join(10)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with a plain study, one with a hostile name, and one with failures and constraints."""
    path = str(tmp_path_factory.mktemp("studies") / "s.journal")
    moopt.Study("plain", Landscape(known=True), "nsga2", path, seed=0).run(trials=40)
    moopt.Study(HOSTILE, Landscape(objectives=3), "random", path, seed=0).run(trials=20)
    hard = Landscape(known=True, constraint="measured", behaviour="flaky")
    moopt.Study("hard", hard, "random", path, seed=0).run(trials=30)
    return path


@pytest.fixture(scope="session")
def address(served: Callable[..., str], storage: str) -> str:
    """A dashboard of that storage, and of one that is not there."""
    return served(storage, str(Path(storage).with_name("missing.journal")))
