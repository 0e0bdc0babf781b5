"""Text: disjoint splits, equal draws for equal seeds, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moopt.backend.text import SPLITS, Text
from moopt.errors import TextError


@pytest.mark.parametrize("source", ["prose", "docstrings", "code"])
def test_every_document_is_in_one_split(source: str, byte_tokenizer: Any) -> None:
    text = Text(source)
    tokens = text.tokenized(byte_tokenizer)
    lengths = [sum(len(stream) for stream in tokens._splits[split]) for split in SPLITS]
    documents = [byte_tokenizer(t, add_special_tokens=False)["input_ids"] for _, t in text.documents[0]]
    assert sum(lengths) == sum(len(d) for d in documents)
    assert all(abs(n / sum(lengths) - share) < 0.12 for n, share in zip(lengths, (0.6, 0.15, 0.25), strict=True))


def test_batches_do_not_overlap_and_take_the_sources_in_turn(byte_tokenizer: Any) -> None:
    tokens = Text("mix").tokenized(byte_tokenizer)
    first, second = (tokens.batch("search", number, 960, 160) for number in (0, 1))
    assert first.shape == second.shape == (6, 160)
    assert not {tuple(row) for row in first.tolist()} & {tuple(row) for row in second.tolist()}


def test_draws_depend_on_the_seed_alone(byte_tokenizer: Any) -> None:
    tokens = Text("prose").tokenized(byte_tokenizer)
    assert tokens.draws("search", 640, 128, seed=3).equal(tokens.draws("search", 640, 128, seed=3))
    assert not tokens.draws("search", 640, 128, seed=3).equal(tokens.draws("search", 640, 128, seed=4))


def test_a_file_of_ones_own_is_split_by_position(tmp_path: Path, byte_tokenizer: Any) -> None:
    (tmp_path / "own.txt").write_text("".join(chr(97 + i % 26) for i in range(1000)))
    tokens = Text(str(tmp_path / "own.txt")).tokenized(byte_tokenizer)
    assert [len(tokens._splits[split][0]) for split in SPLITS] == [600, 150, 250]


def test_text_that_is_too_short_says_what_it_has(tmp_path: Path, byte_tokenizer: Any) -> None:
    (tmp_path / "own.txt").write_text("short " * 20)
    with pytest.raises(TextError, match=r"too short: its search split has 72 tokens in a source, 512 are needed"):
        Text(str(tmp_path / "own.txt")).tokenized(byte_tokenizer).batch("search", 0, 512, 128)


def test_unknown_or_empty_or_binary_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"There is no text 'nowhere\.txt'; expected mix, prose, docstrings, code"):
        Text("nowhere.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(TextError, match="has no documents"):
        _ = Text(str(tmp_path / "empty.txt")).documents
    (tmp_path / "binary").write_bytes(b"a\0b")
    with pytest.raises(TextError, match="is not a text file"):
        _ = Text(str(tmp_path / "binary")).documents


def test_the_identity_follows_the_users_text(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("one")
    before = Text(str(path)).identity
    path.write_text("two")
    assert Text(str(path)).identity != before
