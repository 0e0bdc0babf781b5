"""The options of a bit allocation: widths, those with repairs, formats beyond integers, and external files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moopt.backend import external, formats, quantizers
from moopt.backend.external import External
from moopt.backend.gguf import types as gguf_types
from moopt.backend.options import Option, named
from moopt.backend.simulated import Simulated
from moopt.backend.weights import Inventory, Weight
from moopt.errors import QuantizationError


def listed(
    name: str, given: Sequence[Option], others: Sequence[str], widths: Sequence[int] = quantizers.WIDTHS
) -> tuple[Option, ...]:
    """Options, each once: widths in rising order, then names as they stand in `others`.

    Raises:
        QuantizationError: one is neither among the widths nor among the names; lists them.
    """
    if not isinstance(given, (list, tuple)):
        raise QuantizationError(f"Got {name}={given!r}; expected widths, such as (2, 4, 8).")
    allowed: tuple[Option, ...] = (*widths, *others)
    if not given or any(isinstance(option, bool) or option not in allowed for option in given):
        numbers, known = ", ".join(map(str, widths)), ", ".join(others)
        if len(widths) > 1:
            known = f"widths among {numbers} or, simulated, {known}"
        elif widths:
            known = f"{numbers} or {known}"
        raise QuantizationError(f"Got {name}={tuple(given)}; expected {known}.")
    return tuple(option for option in allowed if option in given)


def of_layers(
    bits: Sequence[Option], ranks: Sequence[int], simulated: Mapping[Option, Simulated],
    files: Mapping[str, External], layers: Sequence[Weight],
) -> tuple[Option, ...]:  # fmt: skip
    """The options of linear layers that are decided together: each width with each rank, formats, and files.

    Args:
        bits: Widths and formats, as they are `listed`.
        ranks: Of repairs; 0 is none. Those lower than the layers' own are offered, or no repair if none is.
        simulated: What the formats are, by name; those that have all the layers are offered.
        files: External options; likewise.
        layers: That change together.

    Raises:
        QuantizationError: none of them fits; says what their inputs are.
    """
    lowest = min(min(weight.shape) for weight in layers)
    fitting = sorted({rank for rank in ranks if rank < lowest}) or [0]
    widths = (named(width, rank) for width in bits if isinstance(width, int) for rank in fitting)
    names = (name for name in bits if isinstance(name, str) and all(map(simulated[name].has, layers)))
    found = (*widths, *names, *(name for name, file in files.items() if all(map(file.has, layers))))
    if not found:
        raise QuantizationError(
            f"None of {', '.join(map(str, bits))} fits {layers[0].name}, which has {layers[0].shape[1]} inputs; give "
            "bits one that does, or skip the layer."
        )
    return found


def check_ranks(ranks: Sequence[int], layers: Sequence[Weight]) -> None:
    """Refuse ranks of repairs that no layer can have.

    Raises:
        QuantizationError: says what the layers have.
    """
    most = max(min(weight.shape) for weight in layers)
    if max(ranks) >= most:
        raise QuantizationError(
            f"Got the rank {max(ranks)}; expected less than {most}, the most that a layer has: give EoRA lower ranks."
        )


def of_table(
    name: str, asked: Option | Sequence[Option], others: Sequence[str], widths: Sequence[int]
) -> tuple[Option, ...]:
    """The options of an embedding or a head; 16 bits may stand alone.

    Raises:
        QuantizationError: as `listed`.
    """
    given = (asked,) if isinstance(asked, (int, str)) else asked
    alone = isinstance(given, (list, tuple)) and len(given) == 1
    return listed(name, given, others, (*widths, 16) if alone else widths)


TAKEN = (*formats.NAMES, *gguf_types.NAMES)
"""Names that options of moopt's own have."""


def opened(files: Mapping[str, str] | None, config: Any, inventory: Inventory) -> dict[str, External]:
    """External options by the names that a user gives them, checked against the model's names and shapes.

    Raises:
        QuantizationError: a name is none, a file cannot be read, or does not fit the model.
    """
    if files is not None and not isinstance(files, Mapping):
        raise QuantizationError(f"Got external={files!r}; expected files by name, such as {{'theirs': 'folder'}}.")
    found = {}
    for name, where in (files or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name) or name in TAKEN:
            raise QuantizationError(
                f"Got the external option {name!r}; expected letters, digits, dashes, dots and underscores, the first "
                "a letter, and no format's name."
            )
        if not isinstance(where, (str, os.PathLike)):
            raise QuantizationError(f"Got external={{{name!r}: {where!r}}}; expected the path of a file or a folder.")
        found[name] = external.opened(name, where, config)
        found[name].fit(inventory.weights)
    return found
