"""Text through a model whose keys and values are packed, as a prompt goes through it in use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from moopt.backend import language
from moopt.backend.kv.cache import packed_cache
from moopt.backend.kv.pairs import Pair, Scheme


def states(pairs: Sequence[Pair], scheme: Scheme) -> language.Run:
    """Takes sequences through a model whose layers cache at these pairs: all of a sequence at once, like a prompt.

    Every token attends to keys and values as the cache gives them back, so that errors of one layer reach the next.
    """
    return partial(_states, list(pairs), scheme)


def _states(pairs: Sequence[Pair], scheme: Scheme, model: Any, ids: Tensor) -> Iterator[Tensor]:
    at_once = max(1, language.TOKENS_AT_ONCE // ids.shape[1])
    for part in ids.split(at_once):
        cache = packed_cache(model, pairs, scheme, room=part.shape[1])
        found = model.base_model(input_ids=part, past_key_values=cache, use_cache=True).last_hidden_state
        yield found.reshape(-1, found.shape[-1])


@contextlib.contextmanager
def packing(model: Any, pairs: Sequence[Pair], scheme: Scheme) -> Iterator[Any]:
    """While open, calls of the model and `model.generate` pack keys and values, unless they are given a cache."""
    plain, generate = model.forward, model.generate

    def packed(call: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is None:
            kwargs |= {"past_key_values": packed_cache(model, list(pairs), scheme), "use_cache": True}
        return call(*args, **kwargs)

    model.forward, model.generate = partial(packed, plain), partial(packed, generate)
    try:
        yield model
    finally:
        del model.forward, model.generate
