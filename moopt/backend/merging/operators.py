"""How tensors of several models become one: thinned differences from a base, added up. Reads no files.

The methods and their defaults are those of mergekit 0.1.5, so that results can be compared: see `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moopt.errors import MergeError

Draw = Callable[[Tensor], Tensor]
"""From probabilities, of any shape, ones and zeros drawn with them."""

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

    Args:
        name: One of `METHODS`.
        base: The tensor of the base, of any shape; for methods that merge differences.
        models: The models' tensors, of the same shape; where a method looks at whole tensors it is asked for one at a
            time, twice if a sign is elected, so that they may be read then.
        weights: One a model. For "slerp", how far it goes is the second's share of both.
        densities: One a model, from 0 to 1: the share of its differences that is kept. 1 keeps all, undisturbed.
        draws: One a model: draws what is kept of its differences, where chance decides, the same each time.
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
    if name == "slerp":
        return _slerp(models[0], models[1], *weights).to(like.dtype)
    if method.thins is not None and min(densities) < 1:
        return _merged(method, base, models, weights, densities, draws, scale).to(like.dtype)
    found = torch.empty_like(like, memory_format=torch.contiguous_format)
    places = pieces(found)
    starts = [None] * len(places) if base is None else pieces(base)
    for place, start, *parts in zip(places, starts, *map(pieces, models), strict=True):
        place.copy_(_merged(method, start, parts, weights, densities, draws, scale))
    return found


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor's numbers in order, so many at a time that a core's cache holds them."""
    return torch.split(tensor.reshape(-1), PIECE)


def _merged(
    method: Method, base: Tensor | None, models: Sequence[Tensor], weights: Sequence[float],
    densities: Sequence[float], draws: Sequence[Draw], scale: float,
) -> Tensor:  # fmt: skip
    """What a method makes of tensors or of pieces of them, in the type that they are merged in."""
    if base is None or not method.from_base:
        return _mean(models, weights)
    start = wide(base)

    def differences() -> Iterator[Tensor]:
        for model, weight, density, draw in zip(models, weights, densities, draws, strict=True):
            yield _thinned(wide(model) - start, method, density, draw).mul_(weight)

    sign = None
    if method.elects:
        sign = torch.where(_sum(differences(), start) >= 0, 1.0, -1.0).to(start.dtype)
    total, divisor = torch.zeros_like(start), torch.zeros_like(start) if method.normalizes else None
    for difference, weight in zip(differences(), weights, strict=True):
        if sign is not None:
            difference.mul_(difference.sign() == sign)
        total += difference
        if divisor is not None:
            divisor += weight * (difference != 0)
    if divisor is not None:
        total /= divisor.masked_fill_(divisor == 0, 1.0)
    return start.add(total, alpha=scale)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in the type that it is merged in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sum(tensors: Iterable[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for each in tensors:
        total += each
    return total


def _thinned(difference: Tensor, method: Method, density: float, draw: Draw) -> Tensor:
    """What a method keeps of a difference."""
    if method.thins is None or density >= 1:
        return difference
    kept = difference * _THIN[method.thins](difference, density, draw)
    if not method.rescales:
        return kept
    before, after = difference.abs().sum(), kept.abs().sum()
    return kept if min(before, after) < LEAST_NORM else kept.mul_(before / after)


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = _sum((wide(tensor) * weight for tensor, weight in zip(tensors, weights, strict=True)), wide(tensors[0]))
    divisor = sum(weights)
    return total / (divisor if abs(divisor) > SMALL else 1.0)


def slerp_share(one: float, other: float) -> float:
    """How far `slerp` goes from the first model to the second; half way where the weights cancel."""
    return other / (one + other) if abs(one + other) > SMALL else 0.5


def _slerp(first: Tensor, second: Tensor, one: float, other: float) -> Tensor:
    """Between two tensors, along the great circle through both directions."""
    a, b = wide(first), wide(second)
    t = slerp_share(one, other)
    norms = [float(torch.linalg.vector_norm(each)) for each in (a, b)]
    directions = [each / (norm if norm > SMALL else 1.0) for each, norm in zip((a, b), norms, strict=True)]
    cosine = (directions[0] * directions[1]).sum().clamp(-1, 1)
    if cosine.abs() > COLLINEAR:
        return (1 - t) * a + t * b
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def _largest(difference: Tensor, density: float, draw: Draw) -> Tensor:
    """Where the largest are, at least one."""
    return _top(difference.abs(), max(1, int(density * difference.numel())) if density > 0 else 0)


def _between(difference: Tensor, density: float, draw: Draw) -> Tensor:
    """Where the largest are that are not among the share `GAMMA` of the very largest.

    Where fewer than that are dropped in all, only the very largest are.
    """
    count, magnitudes = difference.numel(), difference.abs()
    kept = int(density * count)
    dropped = min(int(GAMMA * count), count - kept)
    return _top(magnitudes, dropped + kept) & ~_top(magnitudes, dropped)


def _top(magnitudes: Tensor, count: int) -> Tensor:
    """Where the `count` largest are; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.reshape(-1)
    least = flat.kthvalue(flat.numel() - count + 1).values
    found = flat > least
    found[(flat == least).nonzero()[: count - int(found.sum()), 0]] = True
    return found.reshape(magnitudes.shape)


def _any(difference: Tensor, density: float, draw: Draw) -> Tensor:
    return draw(torch.full_like(difference, density))


def _ranked(difference: Tensor, density: float, draw: Draw) -> Tensor:
    """Drawn with probabilities that rise with the rank in a row, by `EPSILON` on either side of the density."""
    if density <= 0:
        return torch.zeros_like(difference)
    rows = difference if difference.dim() > 1 else difference.reshape(1, -1)
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(difference.dtype)
    share = ranks / ranks.amax(dim=1, keepdim=True).clamp_min(1)
    epsilon = min(EPSILON, 0.999 * density, 0.999 * (1 - density))
    return draw((density - epsilon) + share * 2 * epsilon).reshape(difference.shape)


_THIN = {"magnitude": _largest, "random": _any, "outliers": _between, "ranked": _ranked}


def seeded(seed: int) -> Draw:
    """Draws that are the same each time, for the same seed."""
    return lambda probabilities: torch.bernoulli(probabilities, generator=torch.Generator().manual_seed(seed))
