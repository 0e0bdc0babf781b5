"""What single changes of width do to the loss, from a few backward passes: sampled directional Fisher and gradients.

For sequence s and the change of decision i to option b, let a[s, i, b] = <dL_s/dW_i, W_i(b) - W_i(now)>. With labels
sampled from the candidate's own predictions, mean_s a^2 / (2 t) estimates the KL per token of that change alone, t the
tokens of a sequence: the Fisher information along the direction that matters, with no diagonal approximation. With L
the KL to the original, mean_s a / t is the slope of the loss along the change.

Linears are tapped as the backward pass goes by; neither weight gradients nor logits are ever held for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from moopt.backend.candidate import Candidate
from moopt.backend.language import Head, Reference, whole_rows
from moopt.backend.weights import Weight, module_of

FloatArray = npt.NDArray[np.float64]

SEQUENCE = 128
"""Tokens of a sequence: short ones give more independent samples for the same cost."""
AT_ONCE = 6
"""Sequences of one backward pass."""


@dataclass(frozen=True)
class Decision:
    """Weights that change together, and the widths they may have."""

    weights: tuple[Weight, ...]
    options: tuple[int, ...]


class _Taps:
    """While open, adds <dL_s/dW, W(b) - W(now)> of every tapped weight to `found` [decisions, sequences, options]."""

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision], sequences: int) -> None:
        self._candidate = candidate
        options = max(len(d.options) for d in decisions)
        self.found = torch.zeros(len(decisions), sequences, options)
        self._handles = [
            module_of(candidate.model, weight).register_forward_hook(self._hook(row, decision, weight))
            for row, decision in enumerate(decisions)
            for weight in decision.weights
            if weight.kind == "linear"
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, row: int, decision: Decision, weight: Weight) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def tap(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda g: self._add(row, decision, weight, x, g))

        return tap

    def _add(self, row: int, decision: Decision, weight: Weight, x: Tensor, g: Tensor) -> None:
        with torch.no_grad():
            s = len(x)
            outer = torch.bmm(g.reshape(s, -1, g.shape[-1]).transpose(1, 2), x.reshape(s, -1, x.shape[-1]))
            deltas = changes(self._candidate, weight, decision.options)
            slopes = (deltas @ outer.view(s, -1).T).float().T
            self.found[row, :, : len(decision.options)] += slopes.cpu()


def changes(candidate: Candidate, weight: Weight, options: Sequence[int]) -> Tensor:
    """W(b) - W(now) of every option, [options, n * k]."""
    now = candidate.weight(weight.name, candidate.current.get(weight.name))
    found = now.new_empty(len(options), *now.shape)
    for row, bits in zip(found, options, strict=True):
        torch.sub(candidate.weight(weight.name, bits), now, out=row)
    return found.flatten(1)


def sampled_fisher(
    candidate: Candidate, decisions: Sequence[Decision], head: Head, ids: Tensor, seed: int
) -> FloatArray:
    """The KL per token of each single change from where the candidate is now, in nats, [decisions, options].

    Args:
        candidate: Set to the widths that changes start from; the original's for a first table.
        decisions: What may change.
        head: The candidate's head.
        ids: Sequences [s, t].
        seed: Of the sampled labels.
    """
    squares = torch.zeros(len(decisions), max(len(d.options) for d in decisions), dtype=torch.float64)
    generator = torch.Generator(candidate.device).manual_seed(seed)
    with candidate.differentiable():
        for part in ids.to(candidate.device).split(AT_ONCE):
            with _Forward(candidate, decisions, part) as hidden:
                gradient = _sampled_gradient(hidden.states, head, generator)
                squares += hidden.backward(gradient).double().square().sum(1)
    table = squares / (2 * ids.shape[1] * len(ids))
    return _masked(table, decisions)


def gradient(
    candidate: Candidate, decisions: Sequence[Decision], head: Head, reference: Reference, seed: int
) -> tuple[float, FloatArray, FloatArray]:
    """KL, its slope and its curvature for each single change from where the candidate is, in nats per token.

    Returns:
        The KL on the reference's sequences [s, t], and linear and curvature, [decisions, options] each: the KL after
        a change is about KL + linear + curvature.
    """
    with candidate.differentiable():
        return _gradient(candidate, decisions, head, reference, seed)


def _gradient(
    candidate: Candidate, decisions: Sequence[Decision], head: Head, reference: Reference, seed: int
) -> tuple[float, FloatArray, FloatArray]:
    shape = (len(decisions), max(len(d.options) for d in decisions))
    linear, squares = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    kl, sampled_tokens = 0.0, 0
    generator = torch.Generator(candidate.device).manual_seed(seed)
    count, length = reference.ids.shape
    for start in range(0, count, AT_ONCE):
        part = reference.ids[start : start + AT_ONCE]
        rows = slice(start * length, (start + len(part)) * length)
        with _Forward(candidate, decisions, part) as hidden:
            sampled, toward, total = _both_gradients(hidden.states, head, reference, rows, generator)
            kl += total
            if start % (2 * AT_ONCE) == 0:  # curvature only has to be about right: every other batch will do
                squares += hidden.backward(sampled, again=True).double().square().sum(1)
                sampled_tokens += part.numel()
            linear += hidden.backward(toward).double().sum(1)
    tokens = count * length
    return kl / tokens, _masked(linear / tokens, decisions), _masked(squares / (2 * sampled_tokens), decisions)


class _Forward:
    """A forward pass of a candidate on sequences [s, t] whose backward passes report slopes."""

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision], ids: Tensor) -> None:
        self._candidate, self._ids = candidate, ids
        self._taps = _Taps(candidate, decisions, len(ids))

    def __enter__(self) -> _Forward:
        model = self._candidate.model
        handle = model.get_input_embeddings().register_forward_hook(self._leaf)
        try:
            # For short sequences the plain attention's backward pass is faster than the fused one's.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                self._graph = model.base_model(input_ids=self._ids, use_cache=False).last_hidden_state
        except BaseException:
            self._taps.close()
            raise
        finally:
            handle.remove()
        self.states = self._graph.detach().reshape(-1, self._graph.shape[-1])
        return self

    def __exit__(self, *_: object) -> None:
        self._taps.close()

    def backward(self, gradient: Tensor, *, again: bool = False) -> Tensor:
        """Slopes [decisions, sequences, options] for dL/dh = gradient [n, k]."""
        self._taps.found.zero_()
        torch.autograd.grad(self._graph, self._embedded, gradient.view_as(self._graph), retain_graph=again)
        return self._taps.found.clone()

    def _leaf(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        self._embedded = output.detach().requires_grad_()
        return self._embedded


@torch.no_grad()
def _sampled_gradient(states: Tensor, head: Head, generator: torch.Generator) -> Tensor:
    """dL/dh [n, k] of L = -sum log p(y), y drawn from p itself."""
    return torch.cat([_draw(rows, head, generator)[0] for rows in states.split(whole_rows(head))])


@torch.no_grad()
def _both_gradients(
    states: Tensor, head: Head, reference: Reference, rows: slice, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """dL/dh of the sampled loss and of the KL to the original, [n, k] each, and the sum of the KL."""
    sampled, toward, total, at = [], [], 0.0, rows.start
    for block in states.split(whole_rows(head)):
        part = slice(at, at + len(block))
        at += len(block)
        drawn, mean, normaliser = _draw(block, head, generator)
        expected = reference.expected[part]
        sampled.append(drawn)
        toward.append((mean - expected).to(block.dtype))
        linear = (block.float() * expected).sum(-1) + reference.expected_bias[part]
        total += float((reference.entropy[part] - linear + reference.mass[part] * normaliser).sum())
    return torch.cat(sampled), torch.cat(toward), total


def _draw(rows: Tensor, head: Head, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """For hidden states [n, k]: W'(p - y) for a sampled label y, W'p, and logsumexp."""
    z = head.logits(rows)
    best = z.amax(-1, keepdim=True)
    p = z.sub_(best).exp_()
    total = p.sum(-1, keepdim=True)
    p.div_(total)
    mean = (p.to(rows.dtype) @ head.weight).float() * head.scale
    place = torch.rand(len(rows), 1, generator=generator, device=rows.device)
    cumulated = p.cumsum_(-1)
    label = torch.searchsorted(cumulated, place * cumulated[:, -1:]).clamp_(max=p.shape[1] - 1)[:, 0]
    return (mean - head.weight[label].float() * head.scale).to(rows.dtype), mean, (best + total.log())[:, 0]


def weight_error(candidate: Candidate, decisions: Sequence[Decision]) -> FloatArray:
    """The relative squared error of the weights themselves, [decisions, options]; needs no text."""
    table = torch.zeros(len(decisions), max(len(d.options) for d in decisions), dtype=torch.float64)
    for row, decision in enumerate(decisions):
        for column, bits in enumerate(decision.options):
            for weight in decision.weights:
                original = candidate.weight(weight.name, None).float()
                error = candidate.weight(weight.name, bits).float() - original
                table[row, column] += float(error.square().sum() / original.square().sum())
    return _masked(table, decisions)


def _masked(table: Tensor, decisions: Sequence[Decision]) -> FloatArray:
    """As an array, inf where a decision has fewer options."""
    array: FloatArray = table.numpy().copy()
    for row, decision in enumerate(decisions):
        array[row, len(decision.options) :] = np.inf
    return array
