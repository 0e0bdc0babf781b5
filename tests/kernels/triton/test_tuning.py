"""What was measured is kept whole or not at all; a cache that cannot be read or written stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

tuning = pytest.importorskip("moopt_kernels.gpu.tuning")
CHOSEN = {"multiply-1-64": tuning.Config(16, 256)}


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "kernels" / "gpu.json"
    tuning._store(path, CHOSEN)
    assert tuning._known(path) == CHOSEN
    assert list(path.parent.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    tuning._store(tmp_path / "file" / "gpu.json", CHOSEN)
    assert "the kernels are measured anew in each process" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "no-json", "no-config"])
def test_a_cache_that_cannot_be_read_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / "gpu.json"
    path.mkdir() if kind == "folder" else path.write_text("{" if kind == "no-json" else '{"a": {"b": 1}}')
    assert tuning._known(path) == {}
    assert "measured anew" in caplog.text
