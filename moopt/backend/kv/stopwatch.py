"""How long a token takes whose layers look back at packed keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moopt.backend.kv.cache import PackedCache, packed_cache
from moopt.backend.kv.pairs import Pair, Scheme
from moopt.backend.kv.shape import shape_of
from moopt.backend.latency import ROUNDS, Timing, check_context, timed
from moopt.backend.quiet import alone, pinned


def decode_ms(model: Any, pairs: Sequence[Pair], scheme: Scheme, context: int) -> Timing:
    """One more token after so many, batch 1, one pinned thread or one GPU.

    Args:
        model: A causal language model, on the device it is to be measured on.
        pairs: The widths of each layer.
        scheme: How keys and values are packed.
        context: Tokens before; their keys and values are random numbers, which take as long as any.

    Raises:
        BackendError: the model has not so many positions.
    """
    check_context(model, context)
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with alone(model.device), pinned(model.device), torch.inference_mode():
        cache = packed_cache(model, list(pairs), scheme, room=context + 1)
        fill(cache, model, context)
        # so that layers that look at a window can forget a token again
        cache.activate_past_recording()  # type: ignore[no-untyped-call]

        def decode() -> None:
            model(input_ids=ids, past_key_values=cache, use_cache=True)

        def forget() -> None:
            cache.crop(context - cache.get_seq_length())

        return timed(decode, model.device, 3 * ROUNDS, forget)


def fill(cache: PackedCache, model: Any, tokens: int, batch: int = 1) -> None:
    """Append random keys and values of so many tokens to every layer."""
    shape = shape_of(model.config)
    drawn = torch.randn(2, batch, shape.heads, tokens, shape.size, generator=torch.Generator().manual_seed(0))
    keys, values = drawn.to(device=model.device, dtype=model.dtype)
    for layer in range(len(cache.layers)):
        cache.update(keys, values, layer)
