"""Codes in 32-bit words, as other tools pack them: one behind the other, from the lowest bit."""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes of int32 words, along the first dimension.

    Args:
        words: w x n; w is a multiple of what holds a whole number of codes.
        bits: Of a code; one that is no divisor of 32 goes on in the next word.

    Returns:
        32 w / bits x n, uint8.
    """
    period = bits if 32 % bits else 1
    blocks = words.view(-1, period, words.shape[1])
    codes = torch.empty(len(blocks), 32 * period // bits, words.shape[1], dtype=torch.uint8)
    for place in range(codes.shape[1]):
        word, shift = divmod(place * bits, 32)
        code = (blocks[:, word] >> shift) & (2 ** min(bits, 32 - shift) - 1)  # a shift copies the sign
        if shift + bits > 32:
            code |= blocks[:, word + 1] << (32 - shift)
        codes[:, place] = code & (2**bits - 1)
    return codes.view(-1, words.shape[1])
