"""The widths of a layer's keys and values, how they are packed, and the bytes that takes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moopt.errors import QuantizationError

WIDTHS = (2, 4, 8, 16)
SCALE_BYTES = 4
"""A scale and a smallest value, float16 each."""


@dataclass(frozen=True, order=True)
class Pair:
    """The bits of a layer's keys and values; 16 is not quantized. Printed as K8V4, or KV4 where both are the same.

    Raises:
        QuantizationError: there is no such width.
    """

    k: int
    v: int

    def __post_init__(self) -> None:
        for bits in (self.k, self.v):
            if type(bits) is not int or bits not in WIDTHS:
                raise QuantizationError(f"Got {bits!r} bits of keys or values; expected one of {WIDTHS}.")

    def __str__(self) -> str:
        return f"KV{self.k}" if self.k == self.v else f"K{self.k}V{self.v}"

    @property
    def bits(self) -> float:
        """The mean of both widths: nominal, as scales and the residual window are not counted."""
        return (self.k + self.v) / 2

    @classmethod
    def of(cls, named: Any) -> Pair:
        """A pair as people write it: "K8V4", "KV4", (8, 4), 4 or a pair.

        Raises:
            QuantizationError: it is none of that.
        """
        if isinstance(named, Pair):
            return named
        if type(named) is int:
            return cls(named, named)
        if isinstance(named, (tuple, list)) and len(named) == 2:
            return cls(*named)
        found = re.fullmatch(r"K(\d+)?V(\d+)", named.upper()) if isinstance(named, str) else None
        if found is None:
            raise QuantizationError(f"Got the pair {named!r}; expected such as 'K8V4', 'KV4' or (8, 4).")
        v = int(found[2])
        return cls(int(found[1] or v), v)


KV16 = Pair(16, 16)
"""What is not packed."""


@dataclass(frozen=True)
class Scheme:
    """How keys and values are packed; values have a scale for each token.

    Attributes:
        group_size: How many tokens of a channel of keys share a scale; None: keys have a scale for each token, too.
        residual_length: How many of the newest tokens are not packed.

    Raises:
        QuantizationError: that cannot be packed.
    """

    group_size: int | None = 32
    residual_length: int = 32

    def __post_init__(self) -> None:
        size, window = self.group_size, self.residual_length
        if size is not None and (type(size) is not int or size < 1 or size & (size - 1)):
            raise QuantizationError(f"Got groups of {size!r} tokens; expected a power of two, or None.")
        if type(window) is not int or window < 0:
            raise QuantizationError(f"Got a residual window of {window!r} tokens; expected a whole number from 0.")

    def packed(self, tokens: int) -> int:
        """How many of so many tokens are packed."""
        step = self.group_size or 1
        return max(0, tokens - self.residual_length) // step * step

    def layer_bytes(self, pair: Pair, tokens: int, heads: int, size: int, batch: int = 1, itemsize: int = 2) -> int:
        """What a layer's cache takes.

        Args:
            pair: Its widths.
            tokens: How many it holds of each sequence.
            heads: Heads of keys.
            size: Numbers of a head.
            batch: Sequences.
            itemsize: Bytes of a number that is not packed.
        """
        halves = self.half_bytes("k", pair.k, tokens, size, itemsize) + self.half_bytes(
            "v", pair.v, tokens, size, itemsize
        )
        return batch * heads * halves

    def half_bytes(self, part: str, bits: int, tokens: int, size: int, itemsize: int = 2) -> int:
        """What a head's keys ("k") or values ("v") take."""
        packed = self.packed(tokens)
        if bits == 16:
            return tokens * size * itemsize
        grouped = part == "k" and self.group_size is not None
        scales = packed // (self.group_size or 1) * size if grouped else packed
        return (tokens - packed) * size * itemsize + packed * size * bits // 8 + scales * SCALE_BYTES

    def effective_bits(self, pairs: Iterable[Pair], tokens: int, size: int) -> float:
        """Bits of memory for each number that some layers hold of so many tokens, in heads of one size."""
        each = [self.layer_bytes(pair, tokens, 1, size) for pair in pairs]
        return 8 * sum(each) / (2 * tokens * size * len(each))


KIVI = Scheme()
"""Keys in groups of 32 tokens of a channel, the 32 newest tokens as they came (arXiv:2402.02750)."""
PER_TOKEN = Scheme(None, 0)
"""A scale for each token of keys and of values, all of them packed at once."""
SCHEMES = {"kivi": KIVI, "per-token": PER_TOKEN}


def scheme_of(named: Any) -> Scheme:
    """A scheme by name, or one of one's own.

    Raises:
        QuantizationError: there is none of that name.
    """
    if isinstance(named, Scheme):
        return named
    if not isinstance(named, str) or named not in SCHEMES:
        raise QuantizationError(f"Got the scheme {named!r}; expected one of {', '.join(SCHEMES)}, or a Scheme.")
    return SCHEMES[named]
