"""GPTQ (Frantar et al. 2022): column by column, what one input's rounding does to the output is made up by the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer

BLOCK = 128
"""Columns that are corrected at once."""
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Shares of a group's range that are tried for its scale."""


class Levels(Protocol):
    """The places that codes stand for, counted in steps from the lowest: one place a code, or one for each of m reads.

    Attributes:
        reads: m.
        tops: The codes that the upper end of a group's range may get.
        highest: The highest code.
    """

    @property
    def reads(self) -> int: ...

    @property
    def tops(self) -> tuple[int, ...]: ...

    @property
    def highest(self) -> int: ...

    def nearest(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The best code [n] for the places [m, n] that are wanted, and the places [m, n] it stands for."""

    def loss(self, places: Tensor) -> Tensor:
        """What rounding each place [g, m, n] would lose, whatever its other reads need."""


@dataclass(frozen=True)
class Uniform:
    """Equally spaced levels: a code is its own place."""

    highest: int
    reads: ClassVar[int] = 1

    @property
    def tops(self) -> tuple[int, ...]:
        return (self.highest,)

    def nearest(self, places: Tensor) -> tuple[Tensor, Tensor]:
        codes = places.round().clamp_(0, self.highest)
        return codes[0], codes

    def loss(self, places: Tensor) -> Tensor:
        return (places - places.round().clamp_(0, self.highest)).square_()


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """GPTQ, asymmetric and group-wise, with scales that are chosen when a group starts, on the corrected weights.

    Beyond the published method a group's scale is not its range alone: shares of the range are tried, and the one that
    loses least, each input weighed by what an error of it costs after correction, is taken.

    Args:
        damping: Share of the mean diagonal of the second moment that is added to it.
        act_order: Whether groups, and inputs within groups, go from the strongest to the weakest; groups stay whole.
    """

    name: ClassVar[str] = "gptq"
    calibrated: ClassVar[bool] = True

    damping: float = 0.01
    act_order: bool = True

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        parts = affine(weight, group_size, Uniform(2**bits - 1), inputs, self.damping, self.act_order)
        return Quantized(*parts, bits)


class Group(Protocol):
    """What the codes of one group of inputs stand for, once that is chosen."""

    def nearest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The best code [n] for the values [m, n] that one input's reads want, and the values [m, n] they get."""


G = TypeVar("G", bound=Group)


@dataclass(frozen=True)
class Affine:
    """A group with a scale and a zero point for each output, [n]."""

    levels: Levels
    scale: Tensor
    zero: Tensor

    def nearest(self, values: Tensor) -> tuple[Tensor, Tensor]:
        code, places = self.levels.nearest(values / self.scale + self.zero)
        return code, (places - self.zero) * self.scale


def affine(
    weight: Tensor, group_size: int, levels: Levels, inputs: Inputs | None, damping: float, act_order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [n, k] of a matrix, and the scales (bfloat16) and zeros [n, k/group] of its groups: see `corrected`."""
    fit = partial(chosen, levels)
    codes, groups = corrected(weight, group_size, fit, levels.reads, inputs, damping, act_order)
    scales, zeros = torch.stack([g.scale for g in groups], 1), torch.stack([g.zero for g in groups], 1)
    return codes, scales.bfloat16(), zeros.to(torch.uint8)


def corrected(
    weight: Tensor, group_size: int, fit: Callable[[Tensor, Tensor], G], reads: int, inputs: Inputs | None,
    damping: float, act_order: bool,
) -> tuple[Tensor, list[G]]:  # fmt: skip
    """Codes [n, k] of a matrix, and what was chosen for its groups, in the order of its inputs.

    Where codes have several reads, each read makes up for its own errors, in a copy of the matrix of its own.
    Without inputs, or where their second moment cannot be inverted, nothing is made up for.

    Args:
        weight: n x k.
        group_size: It divides k.
        fit: Chooses for one group: takes its weights for each read, [group, m, n], and what an error of each input
            costs, [group].
        reads: Of a code.
        inputs: What the matrix reads.
        damping: See `GPTQ`.
        act_order: See `GPTQ`.
    """
    n, k = weight.shape
    order = _order(inputs, k, group_size, act_order, weight.device)
    factor = None if inputs is None else inputs.factor(damping, order)
    factor = None if factor is None else factor.to(weight.device)
    diagonal = torch.ones(k, device=weight.device) if factor is None else factor.diagonal().clone()
    rest = weight.float().T[order].repeat(1, reads)  # a row for each input, its copies side by side
    codes = torch.empty(k, n, dtype=torch.uint8, device=weight.device)
    groups: list[G] = []
    block = group_size * max(1, BLOCK // group_size)
    for start in range(0, k, block):
        stop = min(start + block, k)
        errors = torch.empty_like(rest[start:stop])
        for column in range(start, stop):
            if column % group_size == 0:
                part = slice(column, column + group_size)
                groups.append(fit(rest[part].view(group_size, reads, n), diagonal[part].square().reciprocal()))
            values = rest[column].view(reads, n)
            codes[column], got = groups[-1].nearest(values)
            if factor is not None:
                error = (values - got).div_(diagonal[column]).view(-1)
                errors[column - start] = error
                rest[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
        if factor is not None:
            rest[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    whole = order[::group_size].div(group_size, rounding_mode="floor").argsort()
    return codes[order.argsort()].T.contiguous(), [groups[place] for place in whole.tolist()]


def chosen(levels: Levels, copies: Tensor, weights: Tensor) -> Affine:
    """Scale, as bfloat16 holds it, and zero point of each output [n], for one group.

    Args:
        levels: Of the codes.
        copies: The group's weights for each read, [group, m, n]; the range is that of the first.
        weights: What an error of each input costs, [group].
    """
    low, high = copies[:, 0].amin(0).clamp_max(0), copies[:, 0].amax(0).clamp_min(0)
    best_loss = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for share, top in product(SHARES, levels.tops):
        scale = ((high - low) * (share / top)).clamp_min(1e-8).bfloat16().float()
        zero = (-low * share / scale).round().clamp(0, levels.highest)
        loss = torch.einsum("g,gmn->n", weights, levels.loss(copies / scale + zero)) * scale.square()
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return Affine(levels, best_scale, best_zero)


def _order(inputs: Inputs | None, k: int, group_size: int, act_order: bool, device: torch.device) -> Tensor:
    """The order of inputs: whole groups from the strongest to the weakest, and so within each; or as they are."""
    places = torch.arange(k, device=device)
    if inputs is None or not act_order:
        return places
    strengths = inputs.moment.diagonal().to(device).view(-1, group_size)
    within = strengths.argsort(dim=1, descending=True, stable=True)
    groups = strengths.sum(1).argsort(descending=True, stable=True)
    return (places.view(-1, group_size).gather(1, within))[groups].flatten()
