"""Reads bounds as people write them: "size_mb <= 80", or several with "and" between. Knows names and no values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from moopt.errors import StudyError


class Bound(NamedTuple):
    """A bound on a number.

    Attributes:
        name: What is bounded.
        operator: "<=", ">=", "<" or ">".
        value: The bound.
    """

    name: str
    operator: str
    value: float

    def holds(self, value: float) -> bool:
        """Whether a value keeps to it."""
        match self.operator:
            case "<=":
                return value <= self.value
            case ">=":
                return value >= self.value
            case "<":
                return value < self.value
            case _:
                return value > self.value


def bounds(condition: object, names: Iterable[str], what: str) -> Iterator[Bound]:
    """The bounds of a condition, in its order. A name may have spaces, and "and", in it.

    Args:
        condition: Such as "kl <= 0.1 and size_mb <= 100".
        names: What may be bounded.
        what: What those are, for messages, such as "objective of BitToy".

    Raises:
        StudyError: the condition cannot be read, or names something else.
    """
    expected = list(names)
    known = "|".join(re.escape(name) for name in sorted(expected, key=len, reverse=True))
    rest = condition if isinstance(condition, str) else ""
    while True:
        match = re.match(rf"\s*({known}|.+?)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*(and\b|,|&|$)", rest)
        if match is None or not math.isfinite(value := _number(match[3])):
            raise StudyError(f"Cannot read {rest.strip() or condition!r}; expected a bound such as 'size_mb <= 80'.")
        if match[1] not in expected:
            raise StudyError(f"{match[1]!r} is no {what}; expected one of {', '.join(expected)}.")
        yield Bound(match[1], match[2], value)
        if not match[4]:
            return
        rest = rest[match.end() :]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
