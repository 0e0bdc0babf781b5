"""HAWQ-V2: the trace of each layer's Hessian by Hutchinson's draws, with products by double backward in float32.

Of the KL to the original, whose Hessian at the original is positive: with the text's own labels it need not be. Each
draw sees text of its own, so that the mean settles over both at once.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from moopt.backend import memory
from moopt.backend.evaluator import Evaluator
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.proxies.curvature import spread_evenly
from moopt.backend.taps import SEQUENCE
from moopt.backend.weights import module_of

AT_ONCE = 2
"""Sequences of one draw."""
DRAWS, SETTLED = 100, 1e-3
"""The most draws; they end sooner when no mean moves by more than this share of itself."""


def _hawq_v2(request: Request, evaluator: Evaluator) -> FloatArray:
    traces = hessian_traces(request, evaluator)
    return spread_evenly(request, evaluator, lambda weight: traces[weight.name] / (2 * weight.count))


def hessian_traces(request: Request, evaluator: Evaluator) -> dict[str, float]:
    """The trace of each linear weight's block of the Hessian of the KL, by name, nats per token."""
    linears = [w for d in request.decisions for w in d.weights if w.kind == "linear"]
    evaluator.candidate.use({})
    model = copy.deepcopy(evaluator.candidate.model).float().requires_grad_(False)
    parameters = [module_of(model, w).weight.requires_grad_() for w in linears]
    generator = torch.Generator(evaluator.candidate.device).manual_seed(request.seed)
    total = torch.zeros(len(linears), dtype=torch.float64)
    batches = request.sequences(evaluator).split(AT_ONCE)[:DRAWS]
    for draws, ids in enumerate(batches, 1):
        signs = [
            torch.randint(0, 2, p.shape, generator=generator, device=p.device, dtype=p.dtype).mul_(2).sub_(1)
            for p in parameters
        ]
        products = _product(model, parameters, signs, ids)
        found = torch.stack([(s * h).sum(dtype=torch.float64) for s, h in zip(signs, products, strict=True)])
        before, total = total / max(draws - 1, 1), total + found.cpu()
        if draws > 1 and ((total / draws - before).abs() <= SETTLED * before.abs()).all():
            break
    memory.give_back()
    return {w.name: max(float(value), 0.0) / draws for w, value in zip(linears, total, strict=True)}


def _product(
    model: torch.nn.Module, parameters: list[Tensor], vectors: list[Tensor], ids: Tensor
) -> tuple[Tensor, ...]:
    """The Hessian of the mean KL to the model itself on sequences [s, t], times vectors."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        logs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        loss = -(logs.detach().exp() * logs).sum() / ids.numel()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
        return torch.autograd.grad(along, parameters)


HAWQ_V2 = Proxy(
    "hawq-v2",
    "half the trace of each layer's Hessian by Hutchinson's draws, over its weights, times ||dW||^2 (Dong et al. 2020)",
    _hawq_v2,
    # forward 1, backward 2, and the backward pass through both of them 6
    cost=lambda request: 9 * min(request.tokens, DRAWS * AT_ONCE * SEQUENCE),
    usual=3072,
    whole=True,
)
