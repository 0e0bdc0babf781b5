"""Number formats beyond integers: FP8, FP4 and NF4, each group of inputs scaled to the format's range. Simulated.

The scale of a group is the largest magnitude in it over the largest number of the format, in bfloat16; codes are the
nearest numbers to weight / scale, and what lies beyond the range takes its end. There are no zero points. So a matrix
takes 4 or 8 bits a weight and 2 bytes a group. (Servers differ: MXFP4 has powers of two for scales and groups of 32,
bitsandbytes float32 scales, quantized again if asked.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moopt.backend.quantizers.groups import split
from moopt.backend.simulated import Simulated
from moopt.backend.weights import Weight

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of FP4 (OCP Microscaling Formats v1.0, table 5)."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of NF4, quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E)."""


@dataclass(frozen=True)
class _Numbers:
    """The numbers of a format: bits of a code, the largest, and rounding to the nearest within the range."""

    bits: int
    largest: float
    nearest: Callable[[Tensor], Tensor]


def _fp4(x: Tensor) -> Tensor:
    """Ties go to the even code, as in IEEE 754."""
    values = torch.tensor(E2M1, device=x.device)
    middles = (values[1:] + values[:-1]) / 2
    middles[1::2] = torch.nextafter(middles[1::2], middles.new_zeros(()))  # from an odd code a tie goes up
    return values[torch.bucketize(x.abs(), middles)].copysign(x)


def _nf4(x: Tensor) -> Tensor:
    values = torch.tensor(NF4, device=x.device)
    return values[torch.bucketize(x, (values[1:] + values[:-1]) / 2)]


def _cast(dtype: torch.dtype) -> _Numbers:
    return _Numbers(8, torch.finfo(dtype).max, lambda x: x.to(dtype).float())


_NUMBERS = {
    "fp4": _Numbers(4, E2M1[-1], _fp4),
    "nf4": _Numbers(4, NF4[-1], _nf4),
    "fp8-e5m2": _cast(torch.float8_e5m2),
    "fp8-e4m3": _cast(torch.float8_e4m3fn),
}
NAMES = tuple(_NUMBERS)
"""The formats; of those that take equal bytes, the one that usually loses more first."""


@dataclass(frozen=True)
class Format(Simulated):
    """A format for whole matrices.

    Attributes:
        name: "fp4" (E2M1), "nf4", "fp8-e5m2" or "fp8-e4m3".
        group_size: How many inputs share a scale.
    """

    name: str
    group_size: int

    @property
    def key(self) -> str:
        return f"{self.name}-1-group{self.group_size}"

    def bits(self, weight: Weight) -> int:
        return _NUMBERS[self.name].bits

    def bytes(self, weight: Weight) -> int:
        return weight.count * self.bits(weight) // 8 + 2 * weight.count // self.group_size

    def values(self, weight: Weight, original: Tensor) -> Tensor:
        return self.rounded(original)

    def rounded(self, matrix: Tensor) -> Tensor:
        """A finite matrix, n x k, in numbers of the format times scales: float32."""
        numbers, grouped = _NUMBERS[self.name], split(matrix, self.group_size)
        scale = (grouped.abs().amax(-1, keepdim=True) / numbers.largest).bfloat16().float()
        scale = torch.where(scale > 0, scale, 1.0)
        inside = (grouped / scale).clamp(-numbers.largest, numbers.largest)
        return (numbers.nearest(inside) * scale).view(matrix.shape)
