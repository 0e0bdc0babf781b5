"""Proxies that measure the loss of one change at a time: the strongest, and the dearest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from moopt.backend.evaluator import Evaluator
from moopt.backend.options import Options
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.proxies.errors import WEIGHT_ERROR
from moopt.backend.taps import Decision, widest
from moopt.problem import Fidelity

NOISE = 1 / 8
"""The norm of the noise over that of the weights: about what rounding to 3 or 4 bits does."""


def probes(request: Request, evaluator: Evaluator, rows: Iterable[int]) -> FloatArray:
    """The measured loss of some decisions at each width, everything else at the original; inf elsewhere."""
    decisions = request.decisions
    table = np.full((len(decisions), widest(decisions)), np.inf)
    for row in rows:
        for column, bits in enumerate(decisions[row].options):
            table[row, column] = _loss(request, evaluator, {w.name: bits for w in decisions[row].weights})
    return table


def probe_tokens(request: Request, rows: Iterable[int]) -> int:
    """Forward tokens of `probes`."""
    return sum(len(request.decisions[row].options) for row in rows) * _measured_on(request).tokens


def _one_layer(request: Request, evaluator: Evaluator) -> FloatArray:
    return probes(request, evaluator, range(len(request.decisions)))


def _higgs(request: Request, evaluator: Evaluator) -> FloatArray:
    """Loss = sum alpha_l t_l^2: the relative errors t^2 at each width, times what noise of a known t^2 does."""
    candidate, start = evaluator.candidate, _loss(request, evaluator, {})
    table: FloatArray = WEIGHT_ERROR.table(request, evaluator)
    generator = torch.Generator(candidate.device).manual_seed(request.seed)
    for row, decision in _linear(request):
        noisy = {}
        for weight in decision.weights:
            original = candidate.weight(weight.name, None)
            noise = torch.randn(original.shape, generator=generator, device=original.device)
            scale = NOISE * float(original.float().norm() / noise.norm())
            noisy[weight.name] = torch.add(original, noise.to(original.dtype), alpha=scale)
        with candidate.replaced(noisy):
            rise = _loss(request, evaluator, {}) - start
        table[row] *= max(rise, 0.0) / (len(noisy) * NOISE**2)
    return table


def _linear(request: Request) -> list[tuple[int, Decision]]:
    """The decisions over linear layers alone, with their rows."""
    return [(i, d) for i, d in enumerate(request.decisions) if all(w.kind == "linear" for w in d.weights)]


def _loss(request: Request, evaluator: Evaluator, widths: Options) -> float:
    """The first of the measured figures: the loss of a kind of model."""
    return next(iter(evaluator.measure(widths, _measured_on(request)).values.values()))


def _measured_on(request: Request) -> Fidelity:
    return Fidelity(min(request.tokens, request.probe), 0)


ONE_LAYER = Proxy(
    "one-layer",
    "the measured loss of one decision lowered at a time",
    _one_layer,
    cost=lambda request: probe_tokens(request, range(len(request.decisions))),
    usual=512,
    language_only=False,
    linears_only=False,
)
HIGGS = Proxy(
    "higgs",
    "relative weight error times the measured loss of noise in the same weights (Malinovskii et al. 2024)",
    _higgs,
    cost=lambda request: (1 + len(_linear(request))) * _measured_on(request).tokens,
    usual=512,
    language_only=False,
    whole=True,
)
