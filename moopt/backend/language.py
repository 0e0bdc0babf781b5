"""Measure a candidate language model against its original: KL divergence, perplexity, top-1 agreement.

No tensor of all logits is ever made, and the original runs only once a batch. With p the original's distribution at a
token, W the head and h the candidate's last hidden state, z = W h + b its logits,

    KL = sum p log p - p'z + logsumexp(z) sum p,    p'z = h'(W'p) + b'p.

So m = W'p (hidden size) and two numbers are all that is kept of the original, and a candidate costs one head product
and one pass of exponentials. p may be rounded to the compute type: as the same p weighs both logarithms, that weighs
tokens a little otherwise but leaves no offset, and the original is exactly 0 from itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

TOKENS_AT_ONCE = 1024
"""Tokens of one forward pass through the body."""
ROWS, COLUMNS = 1024, 2048
"""The tile of logits that a comparison holds at a time."""
LOGITS = 1 << 24
"""Logits of whole rows that are held at a time where the distribution itself is needed: 64 MiB."""


@dataclass(frozen=True)
class Head:
    """The last linear map of a model, hidden size -> vocabulary, with what follows it.

    Attributes:
        weight: v x k.
        bias: v, or None.
        scale: Logits are multiplied by it.
        softcap: Logits are c * tanh(logits / c) if it is given.
        widened: The weight in float32, if somebody has it already.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    widened: Tensor | None = None

    @cached_property
    def factor(self) -> Tensor:
        """The weight as `product` takes it; converted once, as that costs as much as a product with few rows."""
        if self.weight.device.type == "cuda":
            return self.weight
        return self.weight.float() if self.widened is None else self.widened

    def logits(self, hidden: Tensor, columns: slice = slice(None)) -> Tensor:
        """Logits [n, columns] in float32 from hidden states [n, k]."""
        z = product(hidden, self.factor[columns])
        if self.bias is not None:
            z += self.bias[columns].float()
        if self.scale != 1.0:
            z *= self.scale
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)


def head_of(model: Any) -> Head:
    """The head of a causal language model, with its family's logit scale and cap."""
    layer = model.get_output_embeddings()
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale = 1.0 / divisor
    return Head(layer.weight.data, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def whole_rows(head: Head) -> int:
    """How many rows of all logits may be held at a time."""
    return max(16, LOGITS // len(head.weight))


def product(hidden: Tensor, factor: Tensor) -> Tensor:
    """Hidden [n, k] @ factor [v, k]' in float32; both may be 16-bit, on a CPU the factor as float32 of such numbers."""
    if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
        return torch.mm(hidden, factor.T, out_dtype=torch.float32)
    with _sixteen_bit_factors(hidden.dtype):
        return hidden.float() @ factor.T


@contextlib.contextmanager
def _sixteen_bit_factors(dtype: torch.dtype) -> Iterator[None]:
    """float32 products of numbers that are bfloat16 already lose nothing on bfloat16 units."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def hidden_states(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """The last hidden states [n, k] of sequences [s, t], some sequences at a time, in order."""
    body = model.base_model
    at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
    for part in ids.split(at_once):
        states = body(input_ids=part, use_cache=False).last_hidden_state
        yield states.reshape(-1, states.shape[-1])


Run = Callable[[Any, Tensor], Iterator[Tensor]]
"""Takes sequences [s, t] through a model's body and gives the last hidden states [n, k], in order."""


@dataclass(frozen=True)
class Reference:
    """What is kept of the original on a batch of n = s * t tokens.

    Attributes:
        ids: s x t.
        expected: W'p in the candidate head's weights, n x k.
        expected_bias: b'p, n.
        entropy: sum p log p, n (the negative entropy).
        mass: sum p, n: 1 but for p's rounding.
        top: The likeliest token, n.
    """

    ids: Tensor
    expected: Tensor
    expected_bias: Tensor
    entropy: Tensor
    mass: Tensor
    top: Tensor


@torch.inference_mode()
def observe(model: Any, ids: Tensor, head: Head, candidate_head: Head, run: Run = hidden_states) -> Reference:
    """Run the original on sequences [s, t] and keep what the measures need of it.

    Args:
        model: Set to the original's weights.
        ids: The sequences.
        head: The original's head.
        candidate_head: The head candidates have; W'p is taken with its weights.
        run: How a text is taken through the model.
    """
    expected, bias, entropy, mass, top = [], [], [], [], []
    for states in run(model, ids):
        for rows in states.split(whole_rows(head)):
            z = head.logits(rows)
            best, likeliest = z.max(-1, keepdim=True)
            p = z.sub_(best).exp()
            total = p.sum(-1, keepdim=True)
            z.sub_(total.log())
            p = p.div_(total).to(rows.dtype)
            top.append(likeliest[:, 0])
            mass.append(p.sum(-1, dtype=torch.float32))
            entropy.append(z.mul_(p).sum(-1))
            expected.append(product(p, candidate_head.factor.T) * candidate_head.scale)
            offset = candidate_head.bias
            bias.append(z.new_zeros(len(z)) if offset is None else p.float() @ offset.float() * candidate_head.scale)
    kept = (torch.cat(found) for found in (expected, bias, entropy, mass, top))
    return Reference(ids, *kept)


@dataclass(frozen=True)
class Comparison:
    """A candidate against its original, per token of n = s * t.

    Attributes:
        kl: KL(original || candidate) in nats, s x t.
        nll: -log of the candidate's probability of the next token, s x (t - 1).
        agrees: Whether both find the same token likeliest, s x t.
    """

    kl: Tensor
    nll: Tensor
    agrees: Tensor

    def means(self) -> dict[str, float]:
        """KL divergence, perplexity and top-1 agreement, over all tokens."""
        return {
            "kl": float(self.kl.double().mean()),
            "perplexity": float(self.nll.double().mean().clamp_max(80).exp()),
            "top1_agreement": float(self.agrees.double().mean()),
        }

    def sequences(self) -> dict[str, Tensor]:
        """KL divergence, negative log likelihood and top-1 agreement of every sequence, [s] each."""
        return {"kl": self.kl.mean(1), "nll": self.nll.mean(1), "top1_agreement": self.agrees.float().mean(1)}


@torch.inference_mode()
def compare(model: Any, reference: Reference, head: Head, run: Run = hidden_states) -> Comparison:
    """Run the candidate on the reference's sequences and compare it token by token."""
    ids = reference.ids
    following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1).reshape(-1)
    kl, nll, agrees, at = [], [], [], 0
    for states in run(model, ids):
        for rows in states.split(ROWS):
            part = slice(at, at + len(rows))
            at += len(rows)
            total, best, picked = _normaliser(rows, head, torch.stack([following[part], reference.top[part]], 1))
            linear = (rows.float() * reference.expected[part]).sum(-1) + reference.expected_bias[part]
            kl.append(reference.entropy[part] - linear + reference.mass[part] * total)
            nll.append(total - picked[:, 0])
            agrees.append(picked[:, 1] >= best)
    shape = ids.shape
    shaped = [torch.cat(values).view(shape) for values in (kl, nll, agrees)]
    return Comparison(shaped[0], shaped[1][:, :-1], shaped[2])


def _normaliser(rows: Tensor, head: Head, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logsumexp, the largest logit [n] and the logits of some tokens [n, j], by tiles of the vocabulary."""
    n = len(rows)
    total = rows.new_zeros(n, dtype=torch.float32)
    best = rows.new_full((n,), -math.inf, dtype=torch.float32)
    picked = rows.new_zeros(tokens.shape, dtype=torch.float32)
    for start in range(0, len(head.weight), COLUMNS):
        z = head.logits(rows, slice(start, start + COLUMNS))
        inside = (tokens >= start) & (tokens < start + z.shape[1])
        picked = torch.where(inside, z.gather(1, (tokens - start).clamp(0, z.shape[1] - 1)), picked)
        higher = torch.maximum(best, z.amax(-1))
        total = total * (best - higher).exp() + z.sub_(higher[:, None]).exp_().sum(-1)
        best = higher
    return best + total.log(), best, picked
