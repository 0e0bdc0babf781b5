"""What each pair of widths does to each layer by itself: KVTuner's profile (Li et al. 2025, arXiv:2502.04420).

Queries, keys and values of the original are packed and unpacked layer by layer, and what that changes is compared with
what the layer had; no error reaches the next layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from moopt.backend.kv.pairs import Pair, Scheme
from moopt.errors import BackendError
from moopt_kernels import kv_append, kv_cache, kv_dequantize

FloatArray = npt.NDArray[np.float64]
NAME = "moopt_kv_profile"
ERRORS = ("e_k", "e_v", "e_a", "e_o", "o_norm")
ROWS = 256
"""Queries whose attention is held at a time."""


@dataclass(frozen=True)
class Profile:
    """The errors of every pair in every layer.

    Attributes:
        pairs: The pairs, fewest bits first.
        e_k: Of keys, [layers, pairs]: the mean of |k - k'| / |k|.
        e_v: Of values, likewise.
        e_a: Of the weights of attention: the mean of |a - a'|.
        e_o: Of attention's output: the mean of |o - o'| / |o|.
        o_norm: Of attention's output: the norm of o - o' over that of o.
    """

    pairs: tuple[Pair, ...]
    e_k: FloatArray
    e_v: FloatArray
    e_a: FloatArray
    e_o: FloatArray
    o_norm: FloatArray

    def __len__(self) -> int:
        return len(self.e_o)

    def only(self, pairs: Sequence[Pair]) -> Profile:
        """The same of some of its pairs."""
        places = [place for place, pair in enumerate(self.pairs) if pair in pairs]
        return Profile(tuple(self.pairs[p] for p in places), *(self.of(name)[:, places] for name in ERRORS))

    def of(self, error: str) -> FloatArray:
        """An error by its name, [layers, pairs].

        Raises:
            BackendError: there is none of that name.
        """
        if error not in ERRORS:
            raise BackendError(f"Got the error {error!r}; expected one of {', '.join(ERRORS)}.")
        found: FloatArray = getattr(self, error)
        return found


@torch.inference_mode()
def profile(model: Any, ids: Tensor, pairs: Sequence[Any], scheme: Scheme) -> Profile:
    """Run the original over sequences [s, t], one at a time, and find what each pair does to each of its layers.

    Args:
        model: A transformers model whose attention can be replaced.
        ids: The sequences.
        pairs: The pairs, as `Pair.of` takes them.
        scheme: How keys and values are packed.

    Raises:
        BackendError: the model's attention cannot be replaced, or is not what is asked for.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise BackendError(f"{type(model).__name__} does not let its attention be replaced, so it cannot be profiled.")
    wanted = sorted({Pair.of(each) for each in pairs}, key=lambda pair: (pair.bits, pair))
    sums: dict[int, FloatArray] = {}
    with _observed(model, wanted, scheme, sums):
        for sequence in ids.split(1):
            model.base_model(input_ids=sequence, use_cache=False)
    if not sums:
        raise BackendError(f"{type(model).__name__} ran no attention of its own; it cannot be profiled.")
    errors = np.stack([sums[layer] for layer in sorted(sums)]) / len(ids)  # layers x errors x pairs
    return Profile(tuple(wanted), *(errors[:, place] for place in range(len(ERRORS))))


@contextlib.contextmanager
def _observed(model: Any, pairs: list[Pair], scheme: Scheme, sums: dict[int, FloatArray]) -> Iterator[None]:
    """While open, attention is PyTorch's, and adds what pairs would do to it to the layer's sums."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        shared = query.shape[1] // key.shape[1]
        k, v = (each.repeat_interleave(shared, 1) for each in (key, value))
        causal = attention_mask is None
        out = scaled_dot_product_attention(query, k, v, attention_mask, is_causal=causal, scale=scale)
        found = _errors(query, key, value, attention_mask, scale, pairs, scheme)
        sums[module.layer_idx] = sums.get(module.layer_idx, 0) + found
        return out.transpose(1, 2).contiguous(), None

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _errors(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, pairs: list[Pair], scheme: Scheme
) -> FloatArray:
    """What pairs do to a layer's attention, [errors, pairs]: its queries B x Hq x T x D, its keys and values B x H."""
    keys = {bits: _packed(key, bits, scheme)[0] for bits in {pair.k for pair in pairs}}
    values = {bits: _packed(value, bits, scheme)[1] for bits in {pair.v for pair in pairs}}
    e_k = {bits: _relative(key, found) for bits, found in keys.items()}
    e_v = {bits: _relative(value, found) for bits, found in values.items()}
    shared, tokens = query.shape[1] // key.shape[1], query.shape[2]
    e_a, e_o = dict.fromkeys(keys, 0.0), dict.fromkeys(pairs, 0.0)
    apart, norm = dict.fromkeys(pairs, 0.0), 0.0
    for head in range(query.shape[1]):
        own = head // shared
        for start in range(0, tokens, ROWS):
            rows = slice(start, min(start + ROWS, tokens))
            q = query[:, head, rows].float()
            seen = _seen(mask, rows, tokens, q.device)
            exact = _weights(q, key[:, own], seen, scale)
            o = exact @ value[:, own].float()
            norm += float(o.square().sum())
            share = q.shape[1] / (tokens * query.shape[1])
            for bits, packed in keys.items():
                weights = _weights(q, packed[:, own], seen, scale)
                e_a[bits] += share * float((weights - exact).abs().mean())
                for pair in (pair for pair in pairs if pair.k == bits):
                    moved = weights @ values[pair.v][:, own].float()
                    e_o[pair] += share * _relative(o, moved)
                    apart[pair] += float((o - moved).square().sum())
    columns = [[e_k[p.k], e_v[p.v], e_a[p.k], e_o[p], (apart[p] / max(norm, 1e-30)) ** 0.5] for p in pairs]
    return np.array(columns, dtype=float).T


def _packed(tokens: Tensor, bits: int, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Tokens as keys and as values of a cache of one width give them back."""
    cache = kv_cache(tokens, bits, bits, scheme.group_size, scheme.residual_length)
    kv_append(cache, tokens, tokens)
    return kv_dequantize(cache)


def _relative(exact: Tensor, found: Tensor) -> float:
    """The mean of |x - x'| / |x|, where |x| counts as at least a thousandth of its mean."""
    size = exact.float().abs()
    return float(((exact.float() - found.float()).abs() / size.clamp_min(1e-3 * size.mean())).mean())


def _seen(mask: Tensor | None, rows: slice, tokens: int, device: torch.device) -> Tensor:
    """What queries look at, B or 1 x rows x tokens."""
    if mask is not None:
        return mask[:, 0, rows]
    places = torch.arange(tokens, device=device)
    return (places[None, :] <= places[rows, None])[None]


def _weights(q: Tensor, keys: Tensor, seen: Tensor, scale: float) -> Tensor:
    """The weights of attention, B x rows x tokens."""
    logits = q @ keys.float().transpose(1, 2) * scale
    return logits.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
