"""How tensors of several models become one: thinned differences from a base, added up. Reads no files.

The methods and their defaults are those of mergekit 0.1.5, so that results can be compared: see `METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moopt.errors import MergeError

Draw = Callable[[], Callable[[Tensor], Tensor]]
"""Begins to draw, each time the same: from probabilities of any shape, one piece after the other, where ones fell."""
Keeps = Callable[[Tensor], Tensor]
"""From one piece of a difference after the other, where it is kept."""
Magnitudes = npt.NDArray[Any]

GAMMA = 0.01
"""The share of the largest differences that Breadcrumbs drops."""
EPSILON = 0.15
"""How far from the density DELLA's probabilities lie; less where the density itself is nearer to 0 or 1."""
COLLINEAR = 0.9995
"""From this cosine on, `slerp` interpolates linearly."""
SMALL = 1e-8
LEAST_NORM = 1e-7
PIECE = 2**16
"""Numbers that are merged at once, where each is merged by itself."""


@dataclass(frozen=True)
class Method:
    """What is done to the differences of the models from a base.

    Attributes:
        thins: Which of them are kept, a share that is called the density: all (None), the largest ("magnitude"), any
            ("random"), the largest but for the very largest ("outliers"), or any, large ones rather ("ranked").
        elects: Whether for every number only the differences of the sign that weighs more are added (TIES).
        normalizes: Whether the sum is divided by the weights of what was added.
        rescales: Whether what is kept of a tensor is scaled to the L1 norm that it had.
        from_base: Whether differences from a base are merged, rather than the models.
        models: How many models it takes, if not any number.
    """

    thins: Literal["magnitude", "random", "outliers", "ranked"] | None = None
    elects: bool = False
    normalizes: bool = False
    rescales: bool = False
    from_base: bool = True
    models: int | None = None

    @property
    def scales(self) -> bool:
        """Whether what is merged is multiplied by a scale: differences are."""
        return self.from_base

    @property
    def draws(self) -> bool:
        """Whether chance decides what is kept."""
        return self.thins in ("random", "ranked")


METHODS = {
    "linear": Method(normalizes=True, from_base=False),
    "slerp": Method(from_base=False, models=2),
    "task_arithmetic": Method(),
    "ties": Method("magnitude", elects=True, normalizes=True),
    "dare_linear": Method("random", rescales=True),
    "dare_ties": Method("random", elects=True, rescales=True),
    "breadcrumbs": Method("outliers"),
    "breadcrumbs_ties": Method("outliers", elects=True),
    "della": Method("ranked", elects=True, normalizes=True, rescales=True),
    "della_linear": Method("ranked", rescales=True),
}
"""By mergekit's names.

- linear: the models' weighted mean (Wortsman et al. 2022, arXiv:2203.05482)
- slerp: along the great circle between two models
- task_arithmetic: the weighted sum of differences (Ilharco et al. 2023, arXiv:2212.04089)
- ties: trim, elect a sign, mean of what agrees (Yadav et al. 2023, arXiv:2306.01708)
- dare_linear, dare_ties: drop at random and rescale (Yu et al. 2024, arXiv:2311.03099)
- breadcrumbs, breadcrumbs_ties: trim both tails (Davari and Belilovsky 2024, arXiv:2312.06795)
- della, della_linear: drop at random, small ones rather (Deep et al. 2024, arXiv:2406.11617)
"""


def named(name: object) -> Method:
    """The method of that name.

    Raises:
        MergeError: there is none; lists what there is.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise MergeError(f"There is no method of merging {name!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[name]


def merge(
    name: str, base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float], densities: Sequence[float],
    draws: Sequence[Draw], scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """One tensor of several models, in the type of the base (of the first model, where there is no base).

    It is made piece by piece, so that beside the result there are at most a few copies of one tensor, however many
    models there are, if those are mapped from files.

    Args:
        name: One of `METHODS`.
        base: The tensor of the base, of any shape; for methods that merge differences.
        models: The models' tensors, of the same shape.
        weights: One a model. For "slerp", how far it goes is the second's share of both.
        densities: One a model, from 0 to 1: the share of its differences that is kept. 1 keeps all, undisturbed.
        draws: One a model: draws what is kept of its differences, where chance decides.
        scale: What the merged difference is multiplied by.

    Raises:
        MergeError: there is no such method, or it lacks a base or has not as many models as it takes.
    """
    method = named(name)
    if method.models not in (None, len(models)):
        raise MergeError(f"{name} merges {method.models} models; got {len(models)}.")
    if method.from_base and base is None:
        raise MergeError(f"{name} merges differences from a base; got none. Name the model that all were tuned from.")
    like = models[0] if base is None else base
    found = torch.empty_like(like, memory_format=torch.contiguous_format)
    if base is None or not method.from_base:
        shares = _slerp_weights(models[0], models[1], *weights) if name == "slerp" else _shares(weights)
        for place, *parts in zip(pieces(found), *map(pieces, models), strict=True):
            place.copy_(_sum([wide(part) * share for part, share in zip(parts, shares, strict=True)]))
        return found
    thinned = [_thinning(base, *each, method) for each in zip(models, densities, draws, strict=True)]
    rows = method.thins == "ranked"
    every = zip(pieces(found, rows), pieces(base, rows), *(pieces(model, rows) for model in models), strict=True)
    for place, first, *parts in every:
        start = wide(first)
        differences = [thin(wide(part) - start) for thin, part in zip(thinned, parts, strict=True)]
        place.copy_(start.add(_added(differences, weights, method), alpha=scale))
    return found


def pieces(tensor: Tensor, rows: bool = False) -> tuple[Tensor, ...]:
    """A tensor's numbers in order, so many at a time that a core's cache holds them; with `rows` whole rows of it."""
    if not rows:
        return torch.split(tensor.reshape(-1), PIECE)
    matrix = tensor if tensor.dim() > 1 else tensor.reshape(1, -1)
    return torch.split(matrix, max(1, PIECE * len(matrix) // max(matrix.numel(), 1)))


def _added(differences: Sequence[Tensor], weights: Sequence[float], method: Method) -> Tensor:
    """The weighted sum of differences, which are overwritten."""
    for difference, weight in zip(differences, weights, strict=True):
        difference.mul_(weight)
    if method.elects:
        sign = torch.where(_sum(differences) >= 0, 1.0, -1.0)
        for difference in differences:
            difference.mul_(difference.sign() == sign)
    total = _sum(differences)
    if method.normalizes:
        divisor = _sum([(each != 0).to(each).mul_(weight) for each, weight in zip(differences, weights, strict=True)])
        total /= divisor.masked_fill_(divisor == 0, 1.0)
    return total


def _thinning(base: Tensor, model: Tensor, density: float, draw: Draw, method: Method) -> Callable[[Tensor], Tensor]:
    """What keeps of a model's difference, one piece after the other, what the method does; it sees the whole first."""
    if method.thins is None or density >= 1:
        return lambda difference: difference
    thins, differences = _THIN[method.thins], _Differences(base, model, method.thins == "ranked")
    factor = 1.0
    if method.rescales:
        before = after = 0.0
        keeps = thins(differences, density, draw)
        for difference in differences:
            before += float(difference.abs().sum(dtype=torch.float64))  # the same for any number of threads
            after += float(difference.mul_(keeps(difference)).abs().sum(dtype=torch.float64))
        factor = 1.0 if min(before, after) < LEAST_NORM else before / after
    kept = thins(differences, density, draw)
    return lambda difference: difference.mul_(kept(difference)).mul_(factor)


@dataclass(frozen=True)
class _Differences:
    """A model's differences from the base, piece by piece, made anew each time they are asked for."""

    base: Tensor
    model: Tensor
    rows: bool

    def __iter__(self) -> Iterator[Tensor]:
        both = zip(pieces(self.model, self.rows), pieces(self.base, self.rows), strict=True)
        return (wide(part) - wide(start) for part, start in both)

    def magnitudes(self) -> Magnitudes:
        """All of them without their signs, [n]."""
        double = torch.float64 in (self.base.dtype, self.model.dtype)
        found = torch.empty(self.base.numel(), dtype=torch.float64 if double else torch.float32)
        for place, difference in zip(pieces(found), self, strict=True):
            place.copy_(difference.abs_())
        numbers: Magnitudes = found.numpy()
        return numbers


def wide(tensor: Tensor) -> Tensor:
    """A tensor in the type that it is merged in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    first, *others = tensors
    total = first.clone()
    for each in others:
        total += each
    return total


def _shares(weights: Sequence[float]) -> list[float]:
    """Weights that add up to 1, as far as they can."""
    total = sum(weights)
    return [weight / (total if abs(total) > SMALL else 1.0) for weight in weights]


def slerp_share(one: float, other: float) -> float:
    """How far `slerp` goes from the first model to the second; half way where the weights cancel."""
    return other / (one + other) if abs(one + other) > SMALL else 0.5


def _slerp_weights(first: Tensor, second: Tensor, one: float, other: float) -> tuple[float, float]:
    """The weights by which two tensors are added up to go along the great circle through both directions."""
    t, norms, product = slerp_share(one, other), [0.0, 0.0], 0.0
    for a, b in zip(map(Tensor.double, pieces(first)), map(Tensor.double, pieces(second)), strict=True):
        norms = [norms[0] + float(a @ a), norms[1] + float(b @ b)]
        product += float(a @ b)
    norms = [math.sqrt(norm) if norm > SMALL**2 else 1.0 for norm in norms]
    cosine = min(max(product / (norms[0] * norms[1]), -1.0), 1.0)
    if abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _largest(differences: _Differences, density: float, draw: Draw) -> Keeps:
    """Where the largest are, at least one."""
    magnitudes = differences.magnitudes()
    count = len(magnitudes)
    top = _Top(magnitudes, min(max(1, int(density * count)), count) if density > 0 else 0)
    return lambda difference: top.of(difference.abs())


def _between(differences: _Differences, density: float, draw: Draw) -> Keeps:
    """Where the largest are that are not among the share `GAMMA` of the very largest.

    Where fewer than that are dropped in all, only the very largest are.
    """
    magnitudes = differences.magnitudes()
    count = len(magnitudes)
    kept = int(density * count)
    dropped = min(int(GAMMA * count), count - kept)
    large, largest = _Top(magnitudes, dropped + kept), _Top(magnitudes, dropped)
    return lambda difference: large.of(difference.abs()) & ~largest.of(difference.abs())


def _any(differences: _Differences, density: float, draw: Draw) -> Keeps:
    """Anywhere."""
    drawn = draw()
    return lambda difference: drawn(torch.full_like(difference, density))


def _ranked(differences: _Differences, density: float, draw: Draw) -> Keeps:
    """Drawn with probabilities that rise with the rank in a row, by `EPSILON` on either side of the density.

    Where a row is one number, it has no rank.
    """
    if density <= 0:
        return torch.zeros_like
    drawn, epsilon = draw(), min(EPSILON, 0.999 * density, 0.999 * (1 - density))

    def keeps(difference: Tensor) -> Tensor:
        count, ones = difference.shape[1], [1] * (difference.dim() - 2)
        share = np.linspace(0.0, 1.0, count, dtype=np.float32) if count > 1 else np.full(count, 0.5, dtype=np.float32)
        share = share.reshape(1, count, *ones)
        probabilities = np.empty(difference.shape, dtype=np.float32)
        np.put_along_axis(probabilities, _ascending(difference.abs()), density - epsilon + share * 2 * epsilon, axis=1)
        return drawn(torch.from_numpy(probabilities).to(difference))

    return keeps


def _ascending(magnitudes: Tensor) -> npt.NDArray[np.int64]:
    """The order of magnitudes along dimension 1, of equal ones the first first: the same on every machine.

    Sorting their bits with their places behind them takes a quarter of the time of a stable sort.
    """
    bits = np.ascontiguousarray(magnitudes.float().cpu().numpy()).view(np.uint32).astype(np.uint64)
    places = np.arange(bits.shape[1], dtype=np.uint64).reshape(-1, *[1] * (bits.ndim - 2))
    keys = np.sort((bits << np.uint64(32)) | places, axis=1)
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)


_THIN = {"magnitude": _largest, "random": _any, "outliers": _between, "ranked": _ranked}


class _Top:
    """Where the `count` largest of all magnitudes are, told for one piece after the other; of equal ones the first.

    Args:
        magnitudes: All of them, [n], which are reordered.
        count: How many.
    """

    def __init__(self, magnitudes: Magnitudes, count: int) -> None:
        self._least, self._left = math.inf, 0
        if count:
            magnitudes.partition(len(magnitudes) - count)
            largest = magnitudes[-count:]
            self._least = float(largest[0])
            self._left = int((largest == largest[0]).sum())

    def of(self, magnitudes: Tensor) -> Tensor:
        """Where they are in the next piece."""
        found, equal = magnitudes > self._least, magnitudes == self._least
        count = int(equal.sum())
        if count > self._left:
            equal.view(-1)[equal.view(-1).nonzero()[self._left :, 0]] = False
        self._left = max(0, self._left - count)
        return found | equal


def seeded(seed: int) -> Draw:
    """Draws that are the same each time, for the same seed."""

    def begin() -> Callable[[Tensor], Tensor]:
        generator = np.random.Generator(np.random.SFC64(seed))
        return lambda probabilities: (
            torch.from_numpy(generator.random(probabilities.shape, dtype=np.float32)).to(probabilities) < probabilities
        )

    return begin
