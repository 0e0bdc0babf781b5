"""Tables of proxies in the cache: kept, and made again when their file is damaged."""

import logging
from pathlib import Path

import numpy as np
import pytest

from moopt.backend.proxies import stored


class Counted:
    """A problem whose tables are counted as they are made."""

    def __init__(self) -> None:
        self.made = 0

    def fingerprint(self) -> dict[str, dict[str, object]]:
        return {"identity": {"model": "tiny"}}

    def sensitivities(self, method: str, tokens: int) -> np.ndarray:
        self.made += 1
        return np.array([[1.0, np.inf], [0.5, 0.25]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))


def test_a_table_is_made_once_for_the_same_question() -> None:
    problem = Counted()
    first, again = (stored.table(problem, "fisher", 512) for _ in "12")
    assert np.array_equal(first, again)
    assert problem.made == 1
    stored.table(problem, "fisher", 1024)
    assert problem.made == 2


def test_a_damaged_table_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    problem = Counted()
    expected = stored.table(problem, "fisher", 512)
    file = stored.place(problem, "fisher", 512)
    whole = file.read_bytes()
    for damaged in (whole[:-8] + bytes(8), whole[:40], b""):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, "moopt"):
            assert np.array_equal(stored.table(problem, "fisher", 512), expected)
        assert "damaged" in caplog.text
    assert problem.made == 4
