"""The attention of a transformers model whose keys and values may be packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moopt.backend.kv.layer import Handle
from moopt_kernels import kv_dequantize, quantized_kv_attention

NAME = "moopt_kv"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window")
"""What some models' attention wants besides, and the fused one does not know."""


def attention(
    module: Any, query: Tensor, key: Tensor | Handle, value: Tensor | Handle, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of queries B x Hq x Q x D over keys and values, packed or not; B x Q x Hq x D, and no weights."""
    if isinstance(key, Tensor) and isinstance(value, Tensor):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return found
    assert isinstance(key, Handle)
    plain = attention_mask is None or attention_mask.dtype == torch.bool
    if not plain or dropout or any(rest.get(name) is not None for name in UNKNOWN):
        k, v = kv_dequantize(key.cache)
        return attention(module, query, k, v, attention_mask, dropout, scaling, **rest)
    if attention_mask is not None:
        attention_mask = attention_mask.expand(query.shape[0], 1, -1, -1)
    out = quantized_kv_attention(query, key.cache, attention_mask, scaling)
    if attention_mask is not None and query.shape[2] > 1:  # padding sees nothing, and is nothing, as in PyTorch's own
        out.masked_fill_(~attention_mask.any(-1, keepdim=True), 0)
    return out.transpose(1, 2).contiguous(), None


def replaceable(model: Any) -> bool:
    """Whether a model lets its attention be replaced, and loses nothing by PyTorch's own: a softcap, or sinks."""
    return all(getattr(model, name, False) for name in ("_supports_attention_backend", "_supports_sdpa"))


def register() -> None:
    """Make the attention, and the masks that it takes, known to transformers by name."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
