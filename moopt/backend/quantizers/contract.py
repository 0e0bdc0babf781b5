"""What a quantizer is: a matrix in, unsigned codes with scales and zero points out, with or without calibration."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.errors import QuantizationError
from moopt_kernels import sliced_codes

WIDTHS = (2, 3, 4, 5, 6, 8)


class Repair(NamedTuple):
    """A low-rank matrix that is added to a quantized one: up @ down.

    Attributes:
        up: n x rank.
        down: rank x k.
    """

    up: Tensor
    down: Tensor

    def added(self, values: Tensor) -> Tensor:
        """Quantized values [n, k] with the repair, in their type."""
        return torch.addmm(values.float(), *(part.to(values.device).float() for part in self)).to(values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of both parts."""
        return self.up.nbytes + self.down.nbytes

    def of_rank(self, rank: int) -> Repair:
        """The repair of a lower rank."""
        return Repair(self.up[:, :rank], self.down[:rank])


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix, n x k: value = scale * (code * 2**shift - zero), and the repair if there is one.

    Attributes:
        codes: n x k, uint8, each below 2**bits.
        scales: n x k/group, bfloat16.
        zeros: n x k/group, uint8; None for the symmetric middle 2**(bits + shift - 1).
        bits: The width.
        shift: How many bits the codes lost when they were sliced off a parent; the parent's scales and zeros hold.
        repair: What is added to the values.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    shift: int = 0
    repair: Repair | None = None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix the codes stand for, n x k."""
        n, groups = self.scales.shape
        middle = 2.0 ** (self.bits + self.shift - 1)
        zeros = middle if self.zeros is None else self.zeros.float()[..., None]
        values = (self.codes.view(n, groups, -1).float() * 2**self.shift - zeros) * self.scales.float()[..., None]
        matrix: Tensor = values.view(n, -1)
        return (matrix if self.repair is None else self.repair.added(matrix)).to(dtype)

    def sliced(self, bits: int) -> Quantized:
        """The upper bits of an 8-bit parent's codes, rounded (MatGPTQ)."""
        assert self.bits == 8
        return self if bits == 8 else replace(self, codes=sliced_codes(self.codes, bits), bits=bits, shift=8 - bits)


class Quantizer(ABC):
    """Makes codes of a matrix. A frozen dataclass whose fields are its settings, each with a default; picklable.

    Attributes:
        name: What it is asked for by.
        version: To be raised when it gives other codes: what is stored of the old ones is then made again.
        calibrated: Whether it looks at what the matrix's inputs are like on calibration text.
        sliced: Whether all widths are slices of one 8-bit parent.
        symmetric: Whether it stores no zero points.
        binary: Codes of at most so many bits are binary ones, with a scale for each bit; 0 if none are.
        simulated: Whether no kernel runs its codes: candidates run from their values, and cannot be saved.
        ranks: Of the low-rank repairs beside its codes that a search may choose from; 0 is none.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False
    sliced: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    binary: ClassVar[int] = 0
    simulated: ClassVar[bool] = False
    ranks: tuple[int, ...] = (0,)

    @abstractmethod
    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        """Quantize a matrix.

        Args:
            weight: n x k, finite.
            bits: Among `WIDTHS`; for a sliced quantizer the width of the slice.
            group_size: How many inputs share a scale; it divides k.
            inputs: What the matrix reads; None if that is not known, or the quantizer is not calibrated.

        Raises:
            QuantizationError: the group size does not divide the inputs.
        """

    def repair(self, residual: Tensor, rank: int, inputs: Inputs | None = None) -> Repair:
        """The best repair of a rank for what quantizing a matrix took from it.

        Args:
            residual: The matrix less its quantized values, n x k.
            rank: Among `ranks`, above 0.
            inputs: What the matrix reads; None if that is not known.

        Raises:
            QuantizationError: the quantizer makes no repairs.
        """
        raise QuantizationError(f"{self.name!r} makes no repairs of rank {rank}; expected an EoRA.")

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, for a study's identity."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return found

    @property
    def key(self) -> str:
        """What identifies its codes in the store: name, version and a hash of the settings, if it has any."""
        key, settings = f"{self.name}-{self.version}", self.settings()
        return f"{key}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}" if settings else key
