"""What each pair of widths does to each layer by itself: KVTuner's profile (Li et al. 2025, arXiv:2502.04420).

Queries, keys and values of the original are packed and unpacked layer by layer, and what that changes is compared with
what the layer had; no error reaches the next layer. KVTuner looks at attention's output. What the model makes of that
is another question, which one backward pass answers: errors of keys turn whole heads the wrong way, those of values
are averaged away, so that the same error of the output is worth more in one than in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from moopt.backend.language import Head, head_of
from moopt.backend.sensitivity import sampled_gradient
from moopt.errors import BackendError
from moopt_kernels import kv_append, kv_cache, kv_dequantize

FloatArray = npt.NDArray[np.float64]
NAME = "moopt_kv_profile"
ERRORS = ("e_k", "e_v", "e_a", "e_o", "o_norm", "fisher")
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models' attention wants besides; without it the profile would be of another model."""
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
        fisher: What that does to the model's predictions, in nats per token: half the mean over tokens of
            <g, o' - o>^2, g the gradient of a loss with labels sampled from the predictions.
    """

    pairs: tuple[Pair, ...]
    e_k: FloatArray
    e_v: FloatArray
    e_a: FloatArray
    e_o: FloatArray
    o_norm: FloatArray
    fisher: FloatArray

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


def profile(model: Any, ids: Tensor, pairs: Sequence[Any], scheme: Scheme) -> Profile:
    """Run the original over sequences [s, t], one at a time, and find what each pair does to each of its layers.

    Args:
        model: A transformers causal language model whose attention can be replaced.
        ids: The sequences.
        pairs: The pairs, as `Pair.of` takes them.
        scheme: How keys and values are packed.

    Raises:
        BackendError: the model's attention cannot be replaced, or is not what is asked for.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise BackendError(f"{type(model).__name__} does not let its attention be replaced, so it cannot be profiled.")
    wanted = sorted({Pair.of(each) for each in pairs}, key=lambda pair: (pair.bits, pair))
    head, generator = head_of(model), torch.Generator(ids.device).manual_seed(0)
    sums: dict[int, FloatArray] = {}
    for sequence in ids.split(1):
        seen = _attended(model, sequence, head, generator)
        for layer in list(seen):
            sums[layer] = sums.get(layer, 0) + _errors(seen.pop(layer), wanted, scheme)
    if not sums:
        raise BackendError(f"{type(model).__name__} ran no attention of its own; it cannot be profiled.")
    errors = np.stack([sums[layer] for layer in sorted(sums)]) / len(ids)  # layers x errors x pairs
    return Profile(tuple(wanted), *(errors[:, place] for place in range(len(ERRORS))))


@dataclass
class _Attention:
    """What a layer's attention got, and what its output is worth.

    Attributes:
        query: B x Hq x T x D.
        key: B x H x T x D.
        value: B x H x T x D.
        mask: What queries look at, or None for all that comes before.
        scale: What logits are multiplied by.
        slope: dL/do of a sampled loss, B x T x Hq x D.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    slope: Tensor


def _attended(model: Any, ids: Tensor, head: Head, generator: torch.Generator) -> dict[int, _Attention]:
    """What every layer's attention did on a sequence [1, t], and how a loss of sampled labels hangs on it."""
    found: dict[int, _Attention] = {}

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        scaling: float | None = None, **rest: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if strange := [name for name in UNKNOWN if rest.get(name) is not None]:
            raise BackendError(
                f"{type(model).__name__}'s attention has a {strange[0]}, which no profile knows yet. Decide layers by "
                "themselves and measure what each loses: groups='layers', sensitivities='one-layer'."
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        shared = query.shape[1] // key.shape[1]
        k, v = (each.repeat_interleave(shared, 1) for each in (key, value))
        causal = attention_mask is None
        out = scaled_dot_product_attention(query, k, v, attention_mask, is_causal=causal, scale=scale)
        out = out.transpose(1, 2).contiguous()
        change = torch.zeros_like(out, requires_grad=True)
        kept = (query.detach(), key.detach(), value.detach(), attention_mask, scale, change)
        found[module.layer_idx] = _Attention(*kept)
        return out + change, None

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        with torch.enable_grad():
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        toward = sampled_gradient(states.detach().flatten(0, 1), head, generator).view_as(states)
        changes = [each.slope for each in found.values()]
        for each, slope in zip(found.values(), torch.autograd.grad(states, changes, toward), strict=True):
            each.slope = slope
    finally:
        model.set_attn_implementation(before)
    return found


@torch.no_grad()
def _errors(layer: _Attention, pairs: list[Pair], scheme: Scheme) -> FloatArray:
    """What pairs do to a layer's attention, [errors, pairs]."""
    query, key, value = layer.query, layer.key, layer.value
    keys = {bits: _packed(key, bits, scheme)[0] for bits in {pair.k for pair in pairs}}
    values = {bits: _packed(value, bits, scheme)[1] for bits in {pair.v for pair in pairs}}
    e_k = {bits: _relative(key, found) for bits, found in keys.items()}
    e_v = {bits: _relative(value, found) for bits, found in values.items()}
    heads, tokens = query.shape[1], query.shape[2]
    e_a, e_o = dict.fromkeys(keys, 0.0), dict.fromkeys(pairs, 0.0)
    apart, norm = dict.fromkeys(pairs, 0.0), 0.0
    effects = {pair: torch.zeros(query.shape[0], tokens, device=query.device) for pair in pairs}
    for head in range(heads):
        own = head // (heads // key.shape[1])
        for start in range(0, tokens, ROWS):
            rows = slice(start, min(start + ROWS, tokens))
            q = query[:, head, rows].float()
            seen = _seen(layer.mask, rows, tokens, q.device)
            exact = _weights(q, key[:, own], seen, layer.scale)
            o, slope = exact @ value[:, own].float(), layer.slope[:, rows, head].float()
            norm += float(o.square().sum())
            share = q.shape[1] / (tokens * heads)
            for bits, packed in keys.items():
                weights = _weights(q, packed[:, own], seen, layer.scale)
                e_a[bits] += share * float((weights - exact).abs().mean())
                for pair in (pair for pair in pairs if pair.k == bits):
                    moved = weights @ values[pair.v][:, own].float()
                    e_o[pair] += share * _relative(o, moved)
                    apart[pair] += float((moved - o).square().sum())
                    effects[pair][:, rows] += (slope * (moved - o)).sum(-1)
    fisher = {pair: 0.5 * float(effect.square().mean()) for pair, effect in effects.items()}
    columns = [[e_k[p.k], e_v[p.v], e_a[p.k], e_o[p], (apart[p] / max(norm, 1e-30)) ** 0.5, fisher[p]] for p in pairs]
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
