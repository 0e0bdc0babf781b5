"""What all tests share: property tests draw the same examples each time and are never timed; a cache of their own."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from moopt.backend import cache

settings.register_profile("moopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("moopt")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Variants of the tests' models are not left in the user's cache; embedded models are taken from there."""
    models = cache.folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOOPT_CACHE", str(own))
        yield
