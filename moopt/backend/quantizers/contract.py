"""What a quantizer is: a matrix in, unsigned codes with scales and zero points out, with or without calibration."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt_kernels import sliced_codes

WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix, n x k: value = scale * (code * 2**shift - zero).

    Attributes:
        codes: n x k, uint8, each below 2**bits.
        scales: n x k/group, bfloat16.
        zeros: n x k/group, uint8; None for the symmetric middle 2**(bits + shift - 1).
        bits: The width.
        shift: How many bits the codes lost when they were sliced off a parent; the parent's scales and zeros hold.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    shift: int = 0

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix the codes stand for, n x k."""
        n, groups = self.scales.shape
        middle = 2.0 ** (self.bits + self.shift - 1)
        zeros = middle if self.zeros is None else self.zeros.float()[..., None]
        values = (self.codes.view(n, groups, -1).float() * 2**self.shift - zeros) * self.scales.float()[..., None]
        matrix: Tensor = values.view(n, -1).to(dtype)
        return matrix

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
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False
    sliced: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

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

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, for a study's identity."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return found

    @property
    def key(self) -> str:
        """What identifies its codes in the store: name, version and a hash of the settings, if it has any."""
        key, settings = f"{self.name}-{self.version}", self.settings()
        return f"{key}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}" if settings else key
