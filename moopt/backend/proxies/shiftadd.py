"""ShiftAddLLM's allocation criterion: how large, and how uneven, weights are once their inputs are accounted for."""

from __future__ import annotations

import torch

from moopt.backend.evaluator import Evaluator
from moopt.backend.inputs import Inputs
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.sensitivity import masked
from moopt.backend.taps import widest

DAMPING = 0.01


def _shift_add(request: Request, evaluator: Evaluator) -> FloatArray:
    """The criterion of each decision's weights times 4**-bits, as the square of a rounding error falls."""
    candidate, calibration = evaluator.candidate, evaluator.calibration(request.sequences(evaluator))
    table = torch.zeros(len(request.decisions), widest(request.decisions), dtype=torch.float64)
    for row, decision in enumerate(request.decisions):
        for weight in decision.weights:
            if (inputs := calibration.inputs(weight.name)) is not None:
                found = criterion(candidate.weight(weight.name, None).float(), inputs)
                for column, option in enumerate(decision.options):
                    table[row, column] += found * 4.0 ** -candidate.variants.bits(weight, option)
    return masked(table, request.decisions)


def criterion(matrix: torch.Tensor, inputs: Inputs) -> float:
    """||M||_F std(M)^2 with M = W / diag(U), U'U the inverse of the inputs' damped second moment (You et al. 2024)."""
    factor = inputs.factor(DAMPING, torch.arange(matrix.shape[1], device=matrix.device))
    scaled = matrix if factor is None else matrix / factor.diagonal().to(matrix.device)
    return float(scaled.norm() * scaled.var())


SHIFT_ADD = Proxy(
    "shiftaddllm",
    "||M||_F std(M)^2 of M = W / diag(chol(H^-1)), H of the layer's inputs, times 4^-bits (You et al. 2024)",
    _shift_add,
    cost=lambda request: request.tokens,
    usual=6144,
    language_only=False,
    in_loss=False,
)
