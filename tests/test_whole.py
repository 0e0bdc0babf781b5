"""Whole files and folders: there or not there, open to whom they should be, nothing left behind by who was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moopt.whole import whole_file, whole_folder


@pytest.fixture(autouse=True)
def open_to_the_group() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_and_folders_are_open_to_whom_the_user_says(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "inside").write_text("whole")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inside").read_text() == "whole"
    assert (mode(tmp_path / "file"), mode(tmp_path / "folder")) == (0o640, 0o750)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / ".model.safetensors-backup"
    other.write_text("the user's own")
    with whole_file(path) as temporary:
        left = temporary.name
    (tmp_path / left).write_text("half")
    with whole_file(path) as first:
        assert list(tmp_path.glob(".*.part")) == [first]
        first.write_text("first")
        with whole_file(path) as second:  # the first one is still being written
            second.write_text("second")
        assert first.exists()
    assert path.read_text() == "first"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, other.name}


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    for whole in (whole_file, whole_folder):
        with pytest.raises(RuntimeError), whole(tmp_path / "x"):
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / ".model-BACKUP"
    other.mkdir()
    with whole_folder(path) as temporary:
        left = temporary.parent.name
    (tmp_path / left / "inside").mkdir(parents=True)
    path.rmdir()
    with whole_folder(path) as temporary:
        assert not (tmp_path / left).exists()
        beside = temporary.parent
        with whole_folder(tmp_path / "model", own=False):
            assert beside.exists()  # it is locked
    assert {p.name for p in tmp_path.iterdir()} == {"model", ".model-BACKUP"}


def test_parents_that_were_made_for_nothing_vanish(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "kept" / "new" / "newer" / "model"):
        raise RuntimeError
    assert list((tmp_path / "kept").iterdir()) == []
    with whole_folder(tmp_path / "kept" / "new" / "model") as temporary:
        (temporary / "file").write_text("whole")
    assert (tmp_path / "kept" / "new" / "model" / "file").exists()


def test_a_folder_that_has_to_be_ours_is_no_other(tmp_path: Path) -> None:
    def theirs() -> None:
        (tmp_path / "model" / "theirs").mkdir(parents=True)

    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "model", own=True):
        theirs()
    with whole_folder(tmp_path / "model"):
        pass  # another's is as good
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["theirs"]
