"""Every test function by its own name, for entry points: `named.zdt1()` is `PymooFunction("zdt1")`."""

from __future__ import annotations

from collections.abc import Callable

from moopt_problems.synthetic.pymoo_function import FUNCTIONS, PymooFunction


def __getattr__(name: str) -> Callable[[], PymooFunction]:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def function() -> PymooFunction:
        return PymooFunction(name)

    return function
