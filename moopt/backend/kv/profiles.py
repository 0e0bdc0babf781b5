"""Profiles of models by name, each made once: it is the model, the text and the scheme that decide them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moopt.backend import cache, models
from moopt.backend.candidate import choose_device, choose_type
from moopt.backend.kv.pairs import Pair, Scheme
from moopt.backend.kv.profiling import ERRORS, Profile, profile
from moopt.backend.text import Text, Tokens
from moopt.whole import whole_file


def profiled(
    model: str, pairs: Sequence[Pair], scheme: Scheme, text: Text, tokens: int, context: int,
    loaded: tuple[Any, Tokens] | None = None,
) -> Profile:  # fmt: skip
    """The profile of a model on the beginning of the search text, from the cache or made and put there.

    Args:
        model: A name as `BitAllocation` takes it.
        pairs: The pairs to profile.
        scheme: How keys and values are packed.
        text: The text.
        tokens: Tokens of it.
        context: Tokens of a sequence.
        loaded: The model and the tokens, if somebody has them already.
    """
    described = [*ERRORS, models.identity(model), text.identity, tokens, context, str(scheme), *map(str, pairs)]
    place = cache.folder() / "kv-profiles" / f"{hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]}.json"
    kept = _kept(place)
    if kept is None:
        if loaded is None:
            device = choose_device("auto")
            original = models.load_model(model).to(device=device, dtype=choose_type(device))
            loaded = original, text.tokenized(models.load_tokenizer(model))
        ran, ids = loaded
        found = profile(ran, ids.batch("search", 0, tokens, context).to(ran.device), pairs, scheme)
        kept = {"pairs": [str(pair) for pair in found.pairs], **{name: found.of(name).tolist() for name in ERRORS}}
        with whole_file(place) as temporary:
            temporary.write_text(json.dumps(kept))
    return Profile(tuple(map(Pair.of, kept["pairs"])), *(np.array(kept[name]) for name in ERRORS))


def _kept(place: Path) -> dict[str, Any] | None:
    """What is in a file; None where there is none, or one that is damaged and made again."""
    try:
        found: dict[str, Any] = json.loads(place.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found
