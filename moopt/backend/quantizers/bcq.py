"""Binary coding (ShiftAddLLM, You et al. 2024): a weight is a sum of signed scales, scales are sums of powers of two.

No kernel here runs such codes: candidates run from their values, their bytes are what a file of them would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer
from moopt.backend.quantizers.gptq import GPTQ, corrected

TERMS = 3
"""Signed powers of two in a scale."""
MOST = 4
"""The most binary codes of a weight; wider matrices are GPTQ's."""


@dataclass(frozen=True)
class BinaryCoded(Quantized):
    """A matrix n x k of binary codes: value = sum over i of scale_i * (1 if bit i of the code is set, else -1).

    Attributes:
        scales: n x k/group x bits, bfloat16, each a sum of at most three signed powers of two.
    """

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        n, groups, _ = self.scales.shape
        codes = self.codes.view(n, groups, -1).long()
        return _levels(self.scales.float()).gather(2, codes).view(n, -1).to(dtype)


@dataclass(frozen=True)
class BCQ(Quantizer):
    """Binary coding with power-of-two scales, its errors made up for column by column as in `GPTQ`.

    A group's scales are fitted on the corrected weights when it starts: from a greedy start, rounds of least squares
    for the scales, rounding them to three signed powers of two, and picking the best codes; the best round is taken.
    An error of an input is weighed by what it costs after correction. Above 4 bits it is `GPTQ`.

    Args:
        rounds: Of each group's fit.
        damping: See `GPTQ`.
        act_order: See `GPTQ`.
    """

    name: ClassVar[str] = "bcq"
    calibrated: ClassVar[bool] = True
    binary: ClassVar[int] = MOST
    simulated: ClassVar[bool] = True

    rounds: int = 15
    damping: float = 0.01
    act_order: bool = True

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        if bits > MOST:
            return GPTQ(self.damping, self.act_order).quantize(weight, bits, group_size, inputs)
        fit = partial(fitted, bits, self.rounds)
        codes, groups = corrected(weight, group_size, fit, 1, inputs, self.damping, self.act_order)
        return BinaryCoded(codes, torch.stack([g.scales for g in groups], 1).bfloat16(), None, bits)


class Binary:
    """A group with scales [n, bits] for each output: 2**bits levels, in the order of their values."""

    def __init__(self, scales: Tensor) -> None:
        self.scales = scales
        self._levels, self._codes = _levels(scales).sort(1)
        self._middles = (self._levels[:, 1:] + self._levels[:, :-1]) / 2

    def nearest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        codes, found = self.coded(values.T.contiguous())
        return codes[:, 0], found.T

    def coded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The best codes for values [n, m], and the values they stand for."""
        places = torch.searchsorted(self._middles, values)
        return self._codes.gather(1, places), self._levels.gather(1, places)


def fitted(bits: int, rounds: int, copies: Tensor, weights: Tensor) -> Binary:
    """The best scales of one group.

    Args:
        bits: Binary codes of a weight.
        rounds: Of alternating least squares.
        copies: The group's weights, [group, 1, n].
        weights: What an error of each input costs, [group].
    """
    values, costs = copies[:, 0].T.contiguous(), weights / weights.mean()
    scales = powers_of_two(_greedy(values, bits))
    best, lowest = scales, torch.full_like(values[:, 0], torch.inf)
    for turn in range(rounds + 1):
        codes, found = Binary(scales).coded(values)
        loss = (values - found).square_().mul_(costs).sum(1)
        better = loss < lowest
        best, lowest = torch.where(better[:, None], scales, best), torch.where(better, loss, lowest)
        if turn < rounds:
            scales = powers_of_two(_least_squares(codes, values, costs, bits))
    return Binary(best)


def powers_of_two(values: Tensor) -> Tensor:
    """The values, each as a sum of at most three signed powers of two that bfloat16 holds, in float32."""
    rest, total = values.clone(), torch.zeros_like(values)
    for _ in range(TERMS):
        mantissa, exponent = torch.frexp(rest)
        term = torch.ldexp(mantissa.sign(), exponent - (mantissa.abs() < 0.75).int())
        total += term
        rest -= term
    return total.bfloat16().float()


def _greedy(values: Tensor, bits: int) -> Tensor:
    """Scales [n, bits] one after the other: the mean size of what the ones before leave of the values [n, group]."""
    rest, found = values.clone(), []
    for _ in range(bits):
        found.append(rest.abs().mean(1))
        rest -= found[-1][:, None] * torch.where(rest < 0, -1.0, 1.0)
    return torch.stack(found, 1)


def _least_squares(codes: Tensor, values: Tensor, costs: Tensor, bits: int) -> Tensor:
    """Scales [n, bits] that make the values out of their codes, [n, group] each, with the least costs [group]."""
    signs, none = _signs(bits, values.device), values.new_zeros(len(values), 2**bits)
    counts = none.scatter_add(1, codes, costs.expand_as(values))
    normal = signs.T @ (counts[..., None] * signs)
    ridge = 1e-6 * counts.sum(1)  # two codes may be the same everywhere
    normal = normal + ridge[:, None, None] * torch.eye(bits, device=values.device)
    wanted = none.scatter_add(1, codes, values * costs) @ signs
    solved: Tensor = torch.linalg.solve(normal, wanted)
    return solved


def _levels(scales: Tensor) -> Tensor:
    """What every code stands for: scales [..., bits] -> [..., 2**bits]."""
    return scales @ _signs(scales.shape[-1], scales.device).T


def _signs(bits: int, device: torch.device) -> Tensor:
    """The signs [2**bits, bits] of every code."""
    codes = torch.arange(2**bits, device=device)[:, None] >> torch.arange(bits, device=device)
    return (codes & 1).float() * 2 - 1
