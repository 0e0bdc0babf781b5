"""Proxies from what quantization does to weights and to layers' outputs: no loss, no backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moopt.backend.evaluator import Evaluator
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.sensitivity import masked
from moopt.backend.taps import changes, widest
from moopt.backend.weights import Weight


def _weight_error(request: Request, evaluator: Evaluator) -> FloatArray:
    return _summed(request, evaluator, lambda weight, original, delta: _square(delta) / _square(original))


def _output_error(request: Request, evaluator: Evaluator) -> FloatArray:
    calibration = evaluator.calibration(request.sequences(evaluator))

    def relative(weight: Weight, original: Tensor, delta: Tensor) -> float:
        inputs = calibration.inputs(weight.name)
        if inputs is None or not inputs.moment.any():
            return 0.0  # it reads nothing but zeros
        moment = inputs.moment.to(delta.device)
        return float(((delta @ moment) * delta).sum() / ((original @ moment) * original).sum())

    return _summed(request, evaluator, relative)


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
