"""Codes in 32-bit words, as servers read them: a stream of bits, the least one first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32


def words(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes [n, k], each below 2**bits, as rows of 32-bit words, int32 [n, k * bits / 32 rounded up]."""
    n, k = codes.shape
    stream = np.unpackbits(codes.contiguous().cpu().numpy()[..., None], axis=-1, bitorder="little")[..., :bits]
    flat = stream.reshape(n, k * bits)
    padded = np.pad(flat, ((0, 0), (0, -(k * bits) % WORD)))
    return torch.from_numpy(np.packbits(padded, axis=-1, bitorder="little").view(np.int32).copy())


def compressed_bytes(shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> int:
    """What compressed-tensors takes for a matrix [n, k]: codes, scales, its shape, and zero points if there are any."""
    (n, k), groups = shape, shape[1] // group_size
    zeros = 0 if symmetric else -(-n * bits // WORD) * groups
    return 4 * (n * -(-k * bits // WORD) + zeros) + 2 * n * groups + 16
