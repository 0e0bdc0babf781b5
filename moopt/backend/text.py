"""Text to evaluate on, from CPython itself or from the user's files, in three disjoint splits.

Splits are by document, so that nothing a search sees is in what is reported: "search" 60%, "validation" 15% and
"held-out" 25% of the documents (of the characters, where there is a single document).
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moopt.errors import TextError

SPLITS = {"search": (0, 60), "validation": (60, 75), "held-out": (75, 100)}
LARGEST_SOURCE = 1_500_000
"""Characters taken from one source at most: about 400,000 tokens."""


class Text:
    """Documents of one or several sources, tokenized on demand.

    Args:
        source: "mix" (prose, docstrings and code in equal parts), one of these three, or a path to a text file or a
            folder of text files.

    Raises:
        TextError: there is no such source, or it is empty.
    """

    def __init__(self, source: str = "mix") -> None:
        if not isinstance(source, str):
            raise TextError(f"Got the text {source!r}; expected mix, {', '.join(SOURCES)}, or a path, as text.")
        self.source = source
        self._names = tuple(SOURCES) if source == "mix" else (source,)
        if not self._built_in and not Path(source).exists():
            raise TextError(
                f"There is no text {source!r}; expected mix, {', '.join(SOURCES)}, a text file or a folder."
            )

    def __getstate__(self) -> dict[str, object]:
        return {"source": self.source, "_names": self._names}  # the documents are read again where they are needed

    @cached_property
    def documents(self) -> list[list[tuple[str, str]]]:
        """Name and text of every document, by source."""
        found = [_limited(SOURCES[n]() if n in SOURCES else _files(Path(n))) for n in self._names]
        if not all(found):
            raise TextError(f"The text {self.source!r} has no documents in it.")
        return found

    @cached_property
    def identity(self) -> str:
        """What decides the text, for a study's identity: Python's version, or a hash of the user's files."""
        if self._built_in:
            return f"{self.source} of Python {platform.python_version()}"
        digest = hashlib.sha256()
        for documents in self.documents:
            for name, text in documents:
                digest.update(name.encode() + b"\0" + text.encode(errors="replace"))
        return f"{self.source} {digest.hexdigest()[:16]}"

    @property
    def _built_in(self) -> bool:
        return all(name in SOURCES for name in self._names)

    def tokenized(self, tokenizer: Any) -> Tokens:
        """The same text as token ids."""
        splits: dict[str, list[npt.NDArray[np.int64]]] = {split: [] for split in SPLITS}
        separator = [tokenizer.eos_token_id] if getattr(tokenizer, "eos_token_id", None) is not None else []
        for documents in self.documents:
            for split, texts in _split(documents).items():
                encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
                ids = [token for document in encoded for token in (*document, *separator)]
                splits[split].append(np.array(ids, dtype=np.int64))
        return Tokens(splits, self.source)


class Tokens:
    """Token ids by split, a stream for each source."""

    def __init__(self, splits: dict[str, list[npt.NDArray[np.int64]]], source: str) -> None:
        self._splits, self._source = splits, source

    def batch(self, split: str, number: int, tokens: int, length: int) -> Tensor:
        """Minibatch `number` of a split: tokens // length sequences [s, length], the sources in turn.

        Raises:
            TextError: the text is too short; says what it has and what is needed.
        """
        count = self._count(tokens, length)
        streams = self._splits[split]
        each = -(-count // len(streams))
        return self._cut(split, [[(number * each + i) * length for i in range(each)]] * len(streams), length, count)

    def draws(self, split: str, tokens: int, length: int, seed: int) -> Tensor:
        """Sequences [s, length] that start anywhere in a split, the sources in turn; equal seeds give equal draws."""
        count = self._count(tokens, length)
        rng = np.random.default_rng(seed)
        streams = self._splits[split]
        each = -(-count // len(streams))
        starts = [sorted(rng.integers(0, max(len(s) - length, 0) + 1, each).tolist()) for s in streams]
        return self._cut(split, starts, length, count)

    def _count(self, tokens: int, length: int) -> int:
        if tokens < length:
            raise TextError(f"Got {tokens} tokens; expected at least one sequence of {length}.")
        return tokens // length

    def _cut(self, split: str, starts: list[list[int]], length: int, count: int) -> Tensor:
        streams = self._splits[split]
        for stream, places in zip(streams, starts, strict=True):
            if (needed := max(places) + length) > len(stream):
                raise TextError(
                    f"The text {self._source!r} is too short: its {split} split has {len(stream)} tokens in a source, "
                    f"{needed} are needed. Give more text, or ask for fewer tokens or shorter sequences."
                )
        cut = [[stream[at : at + length] for at in places] for stream, places in zip(streams, starts, strict=True)]
        rows = [sequence for turn in zip(*cut, strict=True) for sequence in turn]
        return torch.from_numpy(np.stack(rows[:count]))


def _split(documents: list[tuple[str, str]]) -> dict[str, list[str]]:
    if len(documents) == 1:
        text = documents[0][1]
        return {s: [text[len(text) * a // 100 : len(text) * b // 100]] for s, (a, b) in SPLITS.items()}
    hashed = sorted(documents, key=lambda d: (zlib.crc32(d[0].encode()), d[0]))
    total = sum(len(text) for _, text in documents)
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen = 0
    for _, text in hashed:
        middle = 100 * (seen + len(text) / 2) / total
        found[next(s for s, (a, b) in SPLITS.items() if a <= middle < b or b == 100)].append(text)
        seen += len(text)
    return found


def _limited(documents: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    kept, size = [], 0
    for name, text in documents:
        if text.strip():
            kept.append((name, text))
            size += len(text)
        if size > LARGEST_SOURCE:
            break
    return kept


def _prose() -> Iterator[tuple[str, str]]:
    """Python's language reference as plain text."""
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def _sources() -> Iterator[tuple[str, str]]:
    """The standard library's own modules, in an order that mixes large and small, old and new."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in root.glob("*.py")] + [p for p in root.glob("*/*.py") if p.parent.name not in _LEFT_OUT]
    for path in sorted(files, key=lambda p: zlib.crc32(str(p.relative_to(root)).encode())):
        yield str(path.relative_to(root)), path.read_text(encoding="utf-8", errors="replace")


_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo"}


def _code() -> Iterator[tuple[str, str]]:
    for name, source in _sources():
        if zlib.crc32(name.encode()) % 2:
            yield name, source


def _docstrings() -> Iterator[tuple[str, str]]:
    for name, source in _sources():
        if zlib.crc32(name.encode()) % 2:
            continue
        tree = ast.parse(source)
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield name, "\n\n".join(text for text in found if text and len(text) > 200)


SOURCES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "prose": _prose,
    "docstrings": _docstrings,
    "code": _code,
}


def _files(path: Path) -> Iterator[tuple[str, str]]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        raw = file.read_bytes()
        if b"\0" in raw[:4096]:
            if not path.is_dir():
                raise TextError(f"{file} is not a text file.")
            continue
        yield file.name, raw.decode("utf-8", errors="replace")
