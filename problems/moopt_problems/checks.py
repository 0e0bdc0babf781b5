"""What constructors of problems refuse: values that make no sense. Says what came and what was expected."""

from __future__ import annotations

from moopt.errors import ProblemError


def whole(least: int, **given: object) -> None:
    """Refuse what is no whole number from `least`, by its name.

    Raises:
        ProblemError: names the first that is none.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            wanted = "a whole number above 0" if least == 1 else f"a whole number from {least}"
            raise ProblemError(f"Got {name}={value!r}; expected {wanted}.")


def switch(**given: object) -> None:
    """Refuse what is neither True nor False, by its name.

    Raises:
        ProblemError: names the first that is neither.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ProblemError(f"Got {name}={value!r}; expected True or False.")
