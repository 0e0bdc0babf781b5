"""Pairs of all layers in a file: what a search found, kept and taken up again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moopt.backend.kv.pairs import Pair, Scheme, scheme_of
from moopt.errors import BackendError
from moopt.whole import whole_file

KIND = "moopt kv-cache preset"


@dataclass(frozen=True)
class Preset:
    """How a model's keys and values are cached.

    Attributes:
        pairs: The pair of each layer.
        scheme: How they are packed.

    Raises:
        BackendError: there is no list of pairs, or nothing in it.
        QuantizationError: a pair or the scheme is none.
    """

    pairs: tuple[Pair, ...]
    scheme: Scheme

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, (list, tuple)) or not self.pairs:
            raise BackendError(f"Got the pairs {self.pairs!r}; expected a list with the pair of each layer.")
        object.__setattr__(self, "pairs", tuple(map(Pair.of, self.pairs)))
        object.__setattr__(self, "scheme", scheme_of(self.scheme))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all."""
        place = Path(path)
        found = {"kind": KIND, "version": 1, "scheme": asdict(self.scheme), "pairs": [str(pair) for pair in self.pairs]}
        with whole_file(place) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
        return place


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset.

    Raises:
        BackendError: the file cannot be read or is none.
        QuantizationError: it has a pair that there is none of.
    """
    try:
        found: Any = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BackendError(f"{os.fspath(path)} cannot be read as a preset: {error}") from error
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != 1:
        raise BackendError(f"{os.fspath(path)} is no preset of this version; expected what `save` wrote.")
    try:
        scheme = {**found["scheme"]}
        return Preset(found["pairs"], Scheme(scheme.pop("group_size"), scheme.pop("residual_length"), **scheme))
    except (KeyError, TypeError) as error:
        raise BackendError(f"{os.fspath(path)} is a preset with something missing or too much: {error}") from error
