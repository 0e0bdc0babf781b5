"""moopt's own codes as GGUF's blocks, where both say the same: nothing is quantized a second time.

GGUF's blocks of 32 inputs have scales in float16. Q4_0, Q5_0 and Q8_0 are symmetric codes; Q4_1 and Q5_1 have a
minimum besides, -scale * zero point, which is rounded to float16: by less than 2**-11 of itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.backend.gguf.types import GGUFType
from moopt.backend.quantizers import Quantized
from moopt.errors import QuantizationError

BLOCK = 32
SYMMETRIC = {4: "q4_0", 5: "q5_0", 8: "q8_0"}
ASYMMETRIC = {4: "q4_1", 5: "q5_1"}
LOST = 2.0**-9
"""How much of a matrix float16 scales may lose, of the norm, before it is refused."""

Bytes = npt.NDArray[np.uint8]


def kind(bits: int, symmetric: bool) -> GGUFType | None:
    """The type that has codes of a width; None if there is none."""
    name = (SYMMETRIC if symmetric else ASYMMETRIC).get(bits)
    return None if name is None else GGUFType(name)


def encoded(name: str, matrix: Quantized) -> Bytes:
    """The bytes of a matrix in the type of its codes, [n, bytes of a row].

    Raises:
        QuantizationError: there is no such type, or it does not hold these codes; says why.
    """
    found = kind(matrix.bits, matrix.zeros is None)
    inputs = matrix.codes.shape[1]
    each = inputs // matrix.scales.shape[1]
    if found is None or type(matrix) is not Quantized or matrix.shift or matrix.repair is not None:
        sort = "symmetric" if matrix.zeros is None else "with zero points"
        raise QuantizationError(f"GGUF has no type of codes as those of {name}: {matrix.bits} bits, {sort}.")
    if each % BLOCK:
        raise QuantizationError(f"GGUF's blocks have {BLOCK} inputs; the groups of {name} have {each}.")
    codes = matrix.codes.cpu().numpy().reshape(-1, BLOCK)
    scales = matrix.scales.float().cpu()
    numbers = [scales] if matrix.zeros is None else [scales, -scales * matrix.zeros.float().cpu()]
    halves = [number.half().repeat_interleave(each // BLOCK, 1).view(-1, 1) for number in numbers]
    parts: list[npt.NDArray[Any]] = [half.numpy().view(np.uint8) for half in halves]
    if matrix.bits == 8:
        parts.append((codes.astype(np.int16) - 128).astype(np.int8).view(np.uint8))
    else:
        if matrix.bits == 5:
            parts.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
        low, high = codes[:, : BLOCK // 2] & 15, codes[:, BLOCK // 2 :] & 15
        parts.append(low | high << 4)
    blocks = np.concatenate(parts, axis=1).reshape(len(matrix.codes), -1)
    wanted = matrix.dequantize().cpu()
    beyond = not all(half.isfinite().all() for half in halves)
    if beyond or (found.decoded(blocks) - wanted).norm() > LOST * wanted.norm():
        raise QuantizationError(f"The scales of {name} are beyond float16, which GGUF has them in.")
    return blocks
