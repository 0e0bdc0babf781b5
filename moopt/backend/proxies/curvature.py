"""Proxies from backward passes: slopes, and the Fisher information by labels sampled from the model's predictions.

Where the loss is the KL to the original, its Hessian at the original is the Fisher information, F = E g g' / t with g
the gradient of a sequence of t tokens under sampled labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moopt.backend import memory
from moopt.backend.evaluator import Evaluator, LanguageEvaluator
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.sensitivity import By, masked, sampled_fisher, sampled_gradient, text_gradient
from moopt.backend.taps import AT_ONCE, Forward, Look, Slopes, changes, widest
from moopt.backend.weights import Weight

STEPS = 4
"""Passes of the power iteration, each over its own share of the text; the last only measures."""


def _fisher(request: Request, evaluator: Evaluator, by: By = "changes") -> FloatArray:
    assert isinstance(evaluator, LanguageEvaluator)
    _prepare(request, evaluator)
    ids = request.sequences(evaluator)
    return sampled_fisher(evaluator.candidate, request.decisions, evaluator.head(), ids, request.seed, by)


def _slope(request: Request, evaluator: Evaluator) -> FloatArray:
    _prepare(request, evaluator)
    total = torch.zeros(len(request.decisions), widest(request.decisions), dtype=torch.float64)
    ids = request.sequences(evaluator)
    for part in ids.split(AT_ONCE):
        slopes = Slopes(evaluator.candidate, request.decisions, len(part))
        _backward(request, evaluator, part, slopes, None)
        total += slopes.found.double().sum(1)
    return masked(total.abs() / ids.numel(), request.decisions)


def _diagonal(request: Request, evaluator: Evaluator) -> FloatArray:
    """Half the sum of E g^2 dW^2 over the weights."""
    _prepare(request, evaluator)
    table = torch.zeros(len(request.decisions), widest(request.decisions), dtype=torch.float64)

    def look(row: int, weight: Weight, gradients: Tensor) -> None:
        options = request.decisions[row].options
        squares = changes(evaluator.candidate, weight, options).square_()
        table[row, : len(options)] += (squares @ gradients.flatten(1).square().T).sum(1).double().cpu()

    generator = torch.Generator(evaluator.candidate.device).manual_seed(request.seed)
    ids = request.sequences(evaluator)
    for part in ids.split(AT_ONCE):
        _backward(request, evaluator, part, look, generator)
    return masked(table / (2 * ids.numel()), request.decisions)


def _hawq(request: Request, evaluator: Evaluator) -> FloatArray:
    largest = top_eigenvalues(request, evaluator)
    return spread_evenly(request, evaluator, lambda weight: largest[weight.name] / weight.count)


def top_eigenvalues(request: Request, evaluator: Evaluator) -> dict[str, float]:
    """The curvature along the top eigenvector of each weight's Fisher block, by power iteration, nats per token.

    Every step sees text of its own: a few sequences always have a direction in which they agree, and the eigenvalue of
    the very sequences that found it would mostly be theirs. So this is, but for noise, never above the true one.
    """
    linears = [w for d in request.decisions for w in d.weights if w.kind == "linear"]
    generator = torch.Generator(evaluator.candidate.device).manual_seed(request.seed)
    device = evaluator.candidate.device
    vectors = {w.name: torch.randn(w.count, generator=generator, device=device) for w in linears}
    shares = request.sequences(evaluator).tensor_split(STEPS)
    for share in [s for s in shares if len(s)]:
        found = dict.fromkeys(vectors, 0.0)
        vectors = {name: vector / vector.norm().clamp_min(1e-30) for name, vector in vectors.items()}
        turned = {name: torch.zeros_like(vector) for name, vector in vectors.items()}

        def look(row: int, weight: Weight, gradients: Tensor) -> None:
            rows = gradients.flatten(1).float()
            along = rows @ vectors[weight.name]  # noqa: B023 - called within the turn of the loop
            found[weight.name] += float(along.square().sum())  # noqa: B023
            turned[weight.name].addmv_(rows.T, along)  # noqa: B023

        for part in share.split(AT_ONCE):
            _backward(request, evaluator, part, look, generator)
        vectors = turned
    return {name: value / share.numel() for name, value in found.items()}


def spread_evenly(request: Request, evaluator: Evaluator, curvature: Callable[[Weight], float]) -> FloatArray:
    """The sum over each decision's linear weights of a curvature times ||dW||^2."""
    table = torch.zeros(len(request.decisions), widest(request.decisions), dtype=torch.float64)
    for row, decision in enumerate(request.decisions):
        for weight in decision.weights:
            if weight.kind == "linear":
                errors = changes(evaluator.candidate, weight, decision.options).float().square().sum(1)
                table[row, : len(decision.options)] += curvature(weight) * errors.double().cpu()
    return masked(table, request.decisions)


def _backward(
    request: Request, evaluator: Evaluator, ids: Tensor, look: Look, generator: torch.Generator | None
) -> None:
    """Show the gradients of sequences [s, t] under sampled labels, or under the text's own without a generator."""
    assert isinstance(evaluator, LanguageEvaluator)
    head = evaluator.head()
    with Forward(evaluator.candidate, request.decisions, ids) as hidden:
        if generator is not None:
            hidden.backward(sampled_gradient(hidden.states, head, generator), look)
        else:
            following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)
            hidden.backward(text_gradient(hidden.states, head, following.reshape(-1)), look)


def _prepare(request: Request, evaluator: Evaluator) -> None:
    evaluator.candidate.prepare({w.name: d.options for d in request.decisions for w in d.weights})
    memory.give_back()


def _three_passes(request: Request) -> int:
    return 3 * request.tokens


FISHER = Proxy(
    "fisher",
    "the KL along each change by the Fisher information of sampled labels, no diagonal approximation",
    _fisher,
    _three_passes,
    usual=6144,
)
FISHER_COLUMNS = Proxy(
    "fisher-columns",
    "the KL along each change by the Fisher information of sampled labels, each column of a layer for itself",
    partial(_fisher, by="columns"),
    _three_passes,
    usual=6144,
)
SLOPE = Proxy(
    "slope", "|<g, dW>|, g the gradient of the text's own loss: first order", _slope, _three_passes, usual=6144
)
FISHER_DIAGONAL = Proxy(
    "fisher-diagonal", "half of sum F_jj dW_j^2, F by sampled labels", _diagonal, _three_passes, usual=6144
)
HAWQ = Proxy(
    "hawq",
    "the top eigenvalue of each layer's Fisher block by power iteration, over its weights, times ||dW||^2 "
    "(Dong et al. 2019)",
    _hawq,
    _three_passes,
    usual=6144,
    in_loss=False,
)
