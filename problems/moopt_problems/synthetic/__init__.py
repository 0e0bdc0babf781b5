"""Problems that cost nothing or next to nothing, with fronts that are known: for tests and benchmarks.

Names are imported when first used: pymoo, botorch and torch wait until a problem needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moopt_problems.synthetic.bit_toy import BitToy as BitToy
    from moopt_problems.synthetic.botorch_function import BotorchFunction as BotorchFunction
    from moopt_problems.synthetic.digits_allocation import DigitsAllocation as DigitsAllocation
    from moopt_problems.synthetic.digits_bits import DigitsBits as DigitsBits
    from moopt_problems.synthetic.noisy import Noisy as Noisy
    from moopt_problems.synthetic.ordinalised import Ordinalised as Ordinalised
    from moopt_problems.synthetic.pymoo_function import PymooFunction as PymooFunction

_HOMES = {
    "BitToy": "bit_toy",
    "BotorchFunction": "botorch_function",
    "DigitsAllocation": "digits_allocation",
    "DigitsBits": "digits_bits",
    "Noisy": "noisy",
    "Ordinalised": "ordinalised",
    "PymooFunction": "pymoo_function",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
