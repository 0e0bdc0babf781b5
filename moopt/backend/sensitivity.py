"""What single changes of width do to the loss, from a few backward passes: Fisher information and slopes.

For sequence s and the change of decision i to option b, let a[s, i, b] = <dL_s/dW_i, W_i(b) - W_i(now)>. With labels
sampled from the candidate's own predictions, mean_s a^2 / (2 t) estimates the KL per token of that change alone, t the
tokens of a sequence: the Fisher information along the direction that matters, with no diagonal approximation. With L
the KL to the original, mean_s a / t is the slope of the loss along the change.

The square of a sum over a million weights is as noisy as one draw of one number, and there are no more draws than
sequences. The sum of the squares of each column's part has a draw for every input of the layer. It leaves out what
columns do together, which rounding makes nearly independent, and keeps what the outputs do together of one input that
is large throughout, where the diagonal alone goes wrong: `sampled_fisher(..., by="columns")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moopt.backend.candidate import Candidate
from moopt.backend.language import Head, Reference, whole_rows
from moopt.backend.taps import AT_ONCE, ColumnSquares, Decision, Forward, Slopes, widest

FloatArray = npt.NDArray[np.float64]

By = Literal["changes", "columns"]


def sampled_fisher(
    candidate: Candidate, decisions: Sequence[Decision], head: Head, ids: Tensor, seed: int, by: By = "changes"
) -> FloatArray:
    """The KL per token of each single change from where the candidate is now, in nats, [decisions, options].

    Args:
        candidate: Set to the widths that changes start from; the original's for a first table.
        decisions: What may change.
        head: The candidate's head.
        ids: Sequences [s, t].
        seed: Of the sampled labels.
        by: Whether the slope along a whole change is squared, or that along each of its columns.
    """
    squares = torch.zeros(len(decisions), widest(decisions), dtype=torch.float64)
    generator = torch.Generator(candidate.device).manual_seed(seed)
    with candidate.differentiable():
        for part in ids.to(candidate.device).split(AT_ONCE):
            look = ColumnSquares(candidate, decisions) if by == "columns" else Slopes(candidate, decisions, len(part))
            with Forward(candidate, decisions, part) as hidden:
                hidden.backward(sampled_gradient(hidden.states, head, generator), look)
            squares += look.found if isinstance(look, ColumnSquares) else look.found.double().square().sum(1)
    return masked(squares / (2 * ids.shape[1] * len(ids)), decisions)


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
    slopes, columns = Slopes(candidate, decisions, 1), ColumnSquares(candidate, decisions)
    kl, sampled_tokens = 0.0, 0
    generator = torch.Generator(candidate.device).manual_seed(seed)
    count, length = reference.ids.shape
    at_once = min(AT_ONCE, -(-count // 2))
    for start in range(0, count, at_once):
        part = reference.ids[start : start + at_once]
        rows = slice(start * length, (start + len(part)) * length)
        with Forward(candidate, decisions, part) as hidden:
            sampled, toward, total = _both_gradients(hidden.states, head, reference, rows, generator)
            kl += total
            if start % (2 * at_once) == 0:  # curvature only has to be about right: every other batch will do
                hidden.backward(sampled, columns, again=True)
                sampled_tokens += part.numel()
            hidden.backward(toward, slopes, together=True)
    tokens, linear = count * length, slopes.found[:, 0].double()
    return kl / tokens, masked(linear / tokens, decisions), masked(columns.found / (2 * sampled_tokens), decisions)


@torch.no_grad()
def sampled_gradient(states: Tensor, head: Head, generator: torch.Generator) -> Tensor:
    """dL/dh [n, k] of L = -sum log p(y), y drawn from p itself."""
    return torch.cat([_draw(rows, head, generator)[0] for rows in states.split(whole_rows(head))])


@torch.no_grad()
def text_gradient(states: Tensor, head: Head, labels: Tensor) -> Tensor:
    """dL/dh [n, k] of L = -sum log p(label) for labels [n]; -1 is no label."""
    found = []
    for rows, label in zip(states.split(whole_rows(head)), labels.split(whole_rows(head)), strict=True):
        toward = _predicted(rows, head)[1] - head.weight[label].float() * head.scale
        found.append((toward * (label >= 0)[:, None]).to(rows.dtype))
    return torch.cat(found)


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
    p, mean, normaliser = _predicted(rows, head)
    place = torch.rand(len(rows), 1, generator=generator, device=rows.device)
    cumulated = p.cumsum_(-1)
    label = torch.searchsorted(cumulated, place * cumulated[:, -1:]).clamp_(max=p.shape[1] - 1)[:, 0]
    return (mean - head.weight[label].float() * head.scale).to(rows.dtype), mean, normaliser


def _predicted(rows: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """For hidden states [n, k]: the prediction p [n, v], W'p, and logsumexp."""
    z = head.logits(rows)
    best = z.amax(-1, keepdim=True)
    p = z.sub_(best).exp_()
    total = p.sum(-1, keepdim=True)
    p.div_(total)
    return p, (p.to(rows.dtype) @ head.weight).float() * head.scale, (best + total.log())[:, 0]


def masked(table: Tensor, decisions: Sequence[Decision]) -> FloatArray:
    """As an array, inf where a decision has fewer options."""
    array: FloatArray = table.numpy().copy()
    for row, decision in enumerate(decisions):
        array[row, len(decision.options) :] = np.inf
    return array
