"""GGUF's types as options: blocks of 32 or 256 inputs, with scales of their own. Simulated: llama.cpp runs them.

A type is measured by exactly the values that its file will have: the matrix is encoded and decoded again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moopt.backend.gguf import llama_cpp, package
from moopt.backend.simulated import Simulated
from moopt.backend.weights import Weight

ALIGNMENT = 32
"""Every tensor of a file begins at a multiple of so many bytes."""


class Block(NamedTuple):
    """What weights are stored in.

    Attributes:
        inputs: How many weights of a row.
        bytes: What they take.
        packaged: Whether the package `gguf` encodes it; llama.cpp's library encodes the others.
    """

    inputs: int
    bytes: int
    packaged: bool


BLOCKS = {
    "q2_k": Block(256, 84, False), "q3_k": Block(256, 110, False), "iq4_xs": Block(256, 136, False),
    "q4_0": Block(32, 18, True), "iq4_nl": Block(32, 18, False), "q4_k": Block(256, 144, False),
    "q4_1": Block(32, 20, True), "q5_0": Block(32, 22, True), "q5_k": Block(256, 176, False),
    "q5_1": Block(32, 24, True), "q6_k": Block(256, 210, False), "q8_0": Block(32, 34, True),
}  # fmt: skip
"""The types by name, in the order of their bytes; of those that take equal bytes, what usually loses more first."""
NAMES = tuple(BLOCKS)


def best(matrices: Sequence[Weight]) -> tuple[str, ...]:
    """The types that matrices can have, of equal bytes only the one that usually loses least."""
    fitting = [name for name in NAMES if all(map(GGUFType(name).has, matrices))]
    return tuple({GGUFType(name).row_bytes(256): name for name in fitting}.values())


def aligned(size: int) -> int:
    """What so many bytes take in a file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class GGUFType(Simulated):
    """A type of GGUF for whole matrices.

    Attributes:
        name: One of `NAMES`.
    """

    name: str

    @property
    def key(self) -> str:
        return f"gguf-{self.name}-1"

    @property
    def kind(self) -> Any:
        """What the package `gguf` calls it."""
        return package().GGMLQuantizationType[self.name.upper()]

    def bits(self, weight: Weight) -> int:
        return int(re.findall(r"\d", self.name)[0])

    def bytes(self, weight: Weight) -> int:
        return aligned(weight.shape[0] * self.row_bytes(weight.shape[1]))

    def row_bytes(self, inputs: int) -> int:
        """What a row takes."""
        block = BLOCKS[self.name]
        return inputs // block.inputs * block.bytes

    def has(self, weight: Weight) -> bool:
        return weight.shape[1] % BLOCKS[self.name].inputs == 0

    def encoded(self, matrix: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of a matrix, one row after the other.

        Raises:
            QuantizationError: what encodes it is not installed.
        """
        values = matrix.float().cpu().numpy()
        if not BLOCKS[self.name].packaged:
            return llama_cpp.encoded(int(self.kind), values, self.row_bytes(values.shape[1]))
        found: npt.NDArray[np.uint8] = package().quants.quantize(values, self.kind)
        return found

    def decoded(self, rows: npt.NDArray[np.uint8]) -> Tensor:
        """The matrix that bytes stand for, float32, on the CPU."""
        values = package().quants.dequantize(rows, self.kind)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def values(self, weight: Weight, original: Tensor) -> Tensor:
        return self.decoded(self.encoded(original)).to(original.device)
