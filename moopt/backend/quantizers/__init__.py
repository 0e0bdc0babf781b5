"""Quantizers by name, plug-ins by entry point. The contract is `Quantizer`; one file each."""

from __future__ import annotations

from importlib.metadata import entry_points

from moopt.backend.quantizers.bcq import BCQ
from moopt.backend.quantizers.contract import WIDTHS, Quantized, Quantizer, Repair
from moopt.backend.quantizers.eora import EoRA
from moopt.backend.quantizers.gptq import GPTQ
from moopt.backend.quantizers.hqq import HQQ
from moopt.backend.quantizers.matgptq import MatGPTQ
from moopt.backend.quantizers.rtn import RTN, RTNSymmetric, rtn, rtn_symmetric
from moopt.errors import QuantizationError

__all__ = [
    "BCQ", "EoRA", "GPTQ", "HQQ", "MatGPTQ", "NAMES", "Quantized", "Quantizer", "RTN", "RTNSymmetric", "Repair",
    "WIDTHS", "check", "named", "rtn", "rtn_symmetric",
]  # fmt: skip

NAMES: dict[str, type[Quantizer]] = {kind.name: kind for kind in (RTN, RTNSymmetric, HQQ, GPTQ, MatGPTQ, EoRA, BCQ)}
"""moopt's own quantizers by name; plug-ins add to them by the entry point `moopt.quantizers`."""


def named(quantizer: str | Quantizer) -> Quantizer:
    """The quantizer of that name with its default settings, or the one that is given.

    Raises:
        QuantizationError: there is none; lists what there is. Or a plug-in's is no `Quantizer`.
    """
    if isinstance(quantizer, Quantizer):
        return quantizer
    if quantizer in NAMES:
        return NAMES[quantizer]()
    plugins = {point.name: point for point in entry_points(group="moopt.quantizers")}
    if quantizer not in plugins:
        raise QuantizationError(
            f"There is no quantizer {quantizer!r}; expected one of {', '.join([*NAMES, *plugins])}."
        )
    made = plugins[quantizer].load()()
    if not isinstance(made, Quantizer):
        raise QuantizationError(
            f"The plug-in {plugins[quantizer].value} gave {type(made).__name__}; expected a Quantizer."
        )
    return made


def check(name: str, shape: tuple[int, int], bits: tuple[int, ...], group_size: int) -> None:
    """Refuse what a layer cannot have.

    Raises:
        QuantizationError: names the layer, its size and what would fit.
    """
    if wrong := [b for b in bits if b not in WIDTHS]:
        raise QuantizationError(f"Got the width {wrong[0]!r}; expected widths among {', '.join(map(str, WIDTHS))}.")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 8:
        raise QuantizationError(f"Got the group size {group_size!r}; expected a whole number of at least 8.")
    if shape[1] % group_size:
        fitting = [g for g in (32, 64, 128, 256) if shape[1] % g == 0] or [shape[1]]
        raise QuantizationError(
            f"The group size {group_size} does not divide the {shape[1]} inputs of {name}; "
            f"{', '.join(map(str, fitting))} would, or skip the layer."
        )
