"""Proxies from what quantization does to weights and to layers' outputs: no loss, no backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moopt.backend.evaluator import Evaluator
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.sensitivity import masked
from moopt.backend.taps import AT_ONCE, changes, widest
from moopt.backend.weights import Weight, module_of


def _weight_error(request: Request, evaluator: Evaluator) -> FloatArray:
    return _summed(request, evaluator, lambda weight, original, delta: _square(delta) / _square(original))


def _output_error(request: Request, evaluator: Evaluator) -> FloatArray:
    linears = [w for d in request.decisions for w in d.weights if w.kind == "linear"]
    inputs = input_products(evaluator, linears, request.sequences(evaluator))

    def relative(weight: Weight, original: Tensor, delta: Tensor) -> float:
        factor = inputs[weight.name]
        return float(((delta @ factor) * delta).sum() / ((original @ factor) * original).sum())

    return _summed(request, evaluator, relative)


def input_products(evaluator: Evaluator, weights: Sequence[Weight], ids: Tensor) -> dict[str, Tensor]:
    """X'X [k, k] in float32 of each linear layer's inputs on sequences [s, t], by name; the original's inputs."""
    model = evaluator.candidate.model
    found = {w.name: torch.zeros(w.shape[1], w.shape[1], device=ids.device) for w in weights}

    def adding(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            found[name].addmm_(x.T, x)

        return add

    handles = [module_of(model, w).register_forward_pre_hook(adding(w.name)) for w in weights]
    try:
        with torch.inference_mode():
            for part in ids.split(AT_ONCE):
                model.base_model(input_ids=part)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _summed(request: Request, evaluator: Evaluator, error: Callable[[Weight, Tensor, Tensor], float]) -> FloatArray:
    """The sum over each decision's weights of an error of (weight, W, dW)."""
    candidate, decisions = evaluator.candidate, request.decisions
    table = torch.zeros(len(decisions), widest(decisions), dtype=torch.float64)
    for row, decision in enumerate(decisions):
        for weight in decision.weights:
            original = candidate.weight(weight.name, None).float()
            deltas = changes(candidate, weight, decision.options).float()
            for column, delta in enumerate(deltas.view(-1, *original.shape)):
                table[row, column] += error(weight, original, delta)
    return masked(table, decisions)


def _square(matrix: Tensor) -> float:
    return float(matrix.square().sum())


WEIGHT_ERROR = Proxy(
    "weight-error",
    "the relative squared error of the weights; needs no text",
    _weight_error,
    cost=lambda request: 0,
    usual=0,
    language_only=False,
    linears_only=False,
    in_loss=False,
)
OUTPUT_ERROR = Proxy(
    "output-error",
    "the relative squared error of each layer's outputs on the original's inputs, ||X dW||^2 / ||X W||^2",
    _output_error,
    cost=lambda request: request.tokens,
    usual=6144,
    language_only=False,
    in_loss=False,
)
