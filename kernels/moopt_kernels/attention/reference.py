"""Attention over a packed cache in plain PyTorch, in float32: the oracle of the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.attention.cache import Store, read


def kv_attention(
    q: Tensor, k_codes: Tensor, k_scales: Tensor, k_lows: Tensor, v_codes: Tensor, v_scales: Tensor, v_lows: Tensor,
    k_window: Tensor, v_window: Tensor, mask: Tensor | None, scale: float, packed: int, k_bits: int, v_bits: int,
    group: int,
) -> Tensor:  # fmt: skip
    """Attention of q [B, Hq, Q, D], in q's type; see `quantized_kv_attention`."""
    dispatch.count("quantized_kv_attention", "reference")
    k = torch.cat([read(Store(k_codes, k_scales, k_lows, k_bits, group), packed), k_window.float()], 2)
    v = torch.cat([read(Store(v_codes, v_scales, v_lows, v_bits, 0), packed), v_window.float()], 2)
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    logits = q.float() @ k.transpose(2, 3) * scale
    queries, tokens = logits.shape[2:]
    if mask is None:
        mask = torch.ones(queries, tokens, dtype=torch.bool, device=q.device).tril(tokens - queries)
    logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    return (logits.softmax(-1) @ v).to(q.dtype)
