"""How a matrix may be stored: at a width, at a width with a low-rank repair beside it, or as something simulated."""

from __future__ import annotations

from collections.abc import Mapping

from moopt.backend.weights import Weight

Option = int | str
"""A width in bits, a width and the rank of a repair such as "3+r32", or the name of something simulated."""
Options = Mapping[str, Option]
"""The option of each weight by name; a weight that is missing keeps its original."""


def named(bits: int, rank: int) -> Option:
    """The option of a width and a rank: the width alone where the rank is 0."""
    return f"{bits}+r{rank}" if rank else bits


def bits_of(option: Option) -> int:
    """The width of the codes, of an option that is not simulated."""
    return int(str(option).partition("+r")[0])


def rank_of(option: Option) -> int:
    """The rank of the repair, of an option that is not simulated; 0 for none."""
    return int(str(option).partition("+r")[2] or 0)


def stored_bits(option: Option, weight: Weight) -> int:
    """Bits of a matrix's codes and repair, scales left out, at an option that is not simulated."""
    return bits_of(option) * weight.count + 16 * rank_of(option) * sum(weight.shape)
