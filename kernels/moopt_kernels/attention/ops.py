"""quantized_kv_attention: one torch operator an implementation, and the thin function that unpacks a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.attention import reference
from moopt_kernels.attention.cache import KVCache
from moopt_kernels.inference import wants_gradient, without_gradient

SCHEMA = (
    "(Tensor q, Tensor k_codes, Tensor k_scales, Tensor k_lows, Tensor v_codes, Tensor v_scales, Tensor v_lows, "
    "Tensor k_window, Tensor v_window, Tensor? mask, float scale, int packed, int k_bits, int v_bits, int group) "
    "-> Tensor"
)


def quantized_kv_attention(q: Tensor, cache: KVCache, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention of the newest tokens' queries over a cache that holds their keys and values already.

    Args:
        q: B x Hq x Q x D in bfloat16, float16 or float32; Hq a multiple of the cache's heads (grouped queries).
        cache: Of T tokens, the last Q of which are the queries'.
        mask: B x 1 x Q x T, true where a query may look; None: at itself and what came before. A row that may look
            nowhere gets the mean of all values, as it does from a mask of the smallest finite number.
        scale: What logits are multiplied by; None: 1 / sqrt(D).

    Returns:
        B x Hq x Q x D in q's type.

    Raises:
        ValueError: shapes or types do not fit.
        KernelError: the cache's layout cannot run here; or the result's gradient is asked for, which there is none of.
    """
    if q.ndim != 4 or q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            f"Got queries of {q.dtype} and shape {list(q.shape)}; expected bfloat16, float16 or float32, [B, Hq, Q, D]."
        )
    batch, heads, queries, size = q.shape
    window = cache.key_window
    if (batch, size) != (window.shape[0], window.shape[3]) or heads % window.shape[1] or queries > cache.length:
        raise ValueError(
            f"Got queries {list(q.shape)} for a cache of {list(window.shape[:2])} heads of {window.shape[3]} and "
            f"{cache.length} tokens; expected [B, a multiple of H, at most the tokens, D]."
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, 1, queries, cache.length)):
        raise ValueError(
            f"Got a mask of {mask.dtype} and shape {list(mask.shape)}; expected bool, "
            f"{[batch, 1, queries, cache.length]}."
        )
    if cache.layout not in dispatch.READY:
        dispatch.home(cache.layout)
    k, v = cache.keys, cache.values
    op = _operators[cache.layout]
    arguments = (
        q, k.codes, k.scales, k.lows, v.codes, v.scales, v.lows, window, cache.value_window, mask,
        size**-0.5 if scale is None else scale, cache.packed, k.bits, v.bits, k.group,
    )  # fmt: skip
    recorded = wants_gradient(q, window, cache.value_window)
    result: Tensor = without_gradient(op, *arguments) if recorded else op(*arguments)
    return result


def _result(q: Tensor, *rest: object) -> Tensor:
    dispatch.check_together(q, *(tensor for tensor in rest if isinstance(tensor, Tensor)))
    return torch.empty_like(q, memory_format=torch.contiguous_format)


_operators: dict[str, Any] = {}
_library = torch.library.Library("moopt", "FRAGMENT")
for _layout in dispatch.LAYOUTS:
    _library.define(f"kv_attention_{_layout}{SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"moopt::kv_attention_{_layout}", _result, lib=_library)
    _operators[_layout] = getattr(torch.ops.moopt, f"kv_attention_{_layout}").default
_library.impl("kv_attention_plain", reference.kv_attention, "CompositeExplicitAutograd")
