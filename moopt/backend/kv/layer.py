"""One layer's packed keys and values, as transformers' caches have layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import BaseQuantizedLayer

from moopt.backend.kv.pairs import Pair, Scheme
from moopt.errors import BackendError
from moopt_kernels import (
    KVCache,
    kv_append,
    kv_cache,
    kv_crop,
    kv_dequantize,
    kv_move,
    kv_reserve,
    kv_select,
)


class Handle:
    """What stands for keys and for values between a cache that stays packed and the attention that reads it."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        raise BackendError(
            f"Something asked for .{name} of keys and values that are packed, so this model's attention cannot read "
            "them as they are; make its cache by packed_cache(model, ..., fused=False)."
        )


class PackedLayer(BaseQuantizedLayer):
    """Appends what comes and packs what is old enough; what was packed is never packed again.

    Args:
        pair: The widths.
        scheme: How they are packed.
        room: Tokens to have room for from the beginning; more may come.
        fused: Whether the model's attention reads handles; else it gets the dequantized keys and values.
    """

    def __init__(self, pair: Pair, scheme: Scheme, room: int, fused: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pair, self.scheme, self.room, self.fused = pair, scheme, room, fused
        self.held: KVCache | None = None

    def __repr__(self) -> str:
        return f"PackedLayer({self.pair}, {self.get_seq_length()} tokens)"

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return 0 if self.held is None else self.held.nbytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        try:
            self.held = kv_cache(
                key_states, self.pair.k, self.pair.v, self.scheme.group_size, self.scheme.residual_length
            )
        except ValueError as error:
            raise BackendError(f"The model's keys cannot be packed: {error}") from error
        kv_reserve(self.held, self.room)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.held is None:
            self.lazy_initialization(key_states, value_states)
        assert self.held is not None
        try:
            kv_append(self.held, key_states, value_states)
        except ValueError as error:
            raise BackendError(f"The model's keys and values cannot be packed: {error}") from error
        if self.fused:
            handle = Handle(self.held)
            return handle, handle
        return kv_dequantize(self.held)

    def get_seq_length(self) -> int:
        return 0 if self.held is None else self.held.length

    def reset(self) -> None:
        self.held, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"Got crop({tokens_to_remove}); expected the tokens to remove as a negative number.")
        if self.held is not None:
            kv_crop(self.held, max(0, self.held.length + tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.held is not None:
            kv_select(self.held, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.held is not None:
            numbers = torch.arange(self.held.key_window.shape[0], device=indices.device)
            kv_select(self.held, numbers[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.held is not None:
            kv_select(self.held, torch.arange(self.held.key_window.shape[0]).repeat_interleave(repeats))

    def offload(self) -> None:
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        """Be on another device; a handle keeps what it has, as a layer is offloaded before attention reads it."""
        if self.held is not None:
            self.held = replace(self.held, keys=replace(self.held.keys), values=replace(self.held.values))
            kv_move(self.held, device)

    def _quantize(self, tensor: Tensor) -> Any:
        raise NotImplementedError("kv_append packs keys and values together")

    def _dequantize(self, q_tensor: Any) -> Any:
        raise NotImplementedError("kv_dequantize gives keys and values together")
