"""Do a model's weights already lie on a low-bit grid? Then some formats are lossless, and say little about methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIZES = (128, 64, 32, 16)
GROUPS = 256
"""Groups of a matrix that are looked at."""


@dataclass(frozen=True)
class Grid:
    """A grid that weights lie on: equally spaced values in every group of so many inputs.

    Attributes:
        bits: 2**bits values at most.
        group_size: The largest group in which it is so.
    """

    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"asymmetric {self.bits}-bit at group {self.group_size}"


def find_grid(weight: Tensor) -> Grid | None:
    """The grid that a matrix [n, k] lies on, if there is one of at most 6 bits.

    In each of some groups the smallest gap between values is taken for the step; on a grid every value is a whole
    number of steps from the least. What is not finite lies on none.
    """
    for size in SIZES:
        if weight.shape[1] % size:
            continue
        rows = weight.reshape(-1, size)  # of a mapped matrix only what is looked at is read
        groups = rows[torch.linspace(0, len(rows) - 1, min(GROUPS, len(rows))).long()].float().sort(-1).values
        if not groups.isfinite().all():
            return None
        steps = groups.diff(dim=-1)
        range_ = (groups[:, -1:] - groups[:, :1]).clamp_min(1e-12)
        step = torch.where(steps > 1e-4 * range_, steps, torch.inf).amin(-1, keepdim=True)
        places = (groups - groups[:, :1]) / step
        whole = ((places - places.round()).abs() < 0.05).all()
        levels = int(places.amax().round()) + 1
        if whole and levels <= 64:
            return Grid(max((levels - 1).bit_length(), 1), size)
    return None
