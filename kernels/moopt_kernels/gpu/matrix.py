"""A quantized matrix in the triton layout as kernels take it: pointers, strides and what they are compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from moopt_kernels.gpu import planes
from moopt_kernels.gpu.tuning import Config
from moopt_kernels.layout import Prepacked


@dataclass(frozen=True)
class Matrix:
    """Of `bits` stored the `keep` highest are read; value = scale * (code * 2**shift - zero).

    Attributes:
        codes: Planes, one after the other, uint8.
        scales: n x groups, bfloat16.
        zeros: n x groups, uint8; None for the middle.
        shape: (n, k).
        group_size: How many inputs share a scale.
        bits: Width of a stored code.
        keep: Width of the slice that is read; `bits` for the code as it is.
        shift: What a code that was read is multiplied by, as a power of two.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, int]
    group_size: int
    bits: int
    keep: int
    shift: int

    @classmethod
    def of(cls, weight: Prepacked, keep: int | None = None) -> Matrix:
        """A prepacked matrix, or the `keep`-bit slice of an 8-bit parent."""
        cut = 0 if keep is None else weight.bits - keep
        return cls(
            weight.codes, weight.scales, weight.zeros, weight.shape, weight.group_size,
            weight.bits, weight.bits - cut, weight.shift + cut,
        )  # fmt: skip

    @property
    def group(self) -> int:
        """How many codes are stored for a group, filled up."""
        return planes.filled_group(self.shape[1], self.group_size)

    @property
    def columns(self) -> int:
        """How many codes are stored for a row, filled up."""
        return planes.filled_columns(self.shape[1], self.group_size)

    def pointers(self) -> list[Tensor]:
        """Four planes (the first in the place of one that is not there), scales and zeros."""
        found = planes.split(self.codes, self.bits, self.shape[0] * self.columns)
        return [*found, *found[:1] * (4 - len(found)), self.scales, self.scales if self.zeros is None else self.zeros]

    def strides(self) -> tuple[int, int]:
        """Elements of eight codes a row, groups a row."""
        return self.columns // 8, self.columns // self.group

    def constants(self, config: Config) -> dict[str, int]:
        """What a kernel is compiled for."""
        return {
            "BITS": self.bits, "KEEP": self.keep, "SHIFT": self.shift, "GROUP": self.group,
            "SIZE": min(self.shape[1], self.group_size), "HAS_ZEROS": self.zeros is not None,
            "ROWS": config.rows, "COLUMNS": config.columns,
        }  # fmt: skip

    def fitting(self, configs: Sequence[Config]) -> list[Config]:
        """The configurations whose tiles hold whole groups, or lie within one."""
        return [c for c in configs if self.group % c.columns == 0 or c.columns % self.group == 0]
