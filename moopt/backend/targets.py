"""What servers load, in one table: so that what is searched can be served.

The figures are of the versions named; what was tried here and what was not is said in docs/how-to/export.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moopt.backend.gguf.types import NAMES as TYPES
from moopt.backend.options import Option
from moopt.backend.quantizers import WIDTHS, Quantizer
from moopt.backend.weights import TIES
from moopt.errors import ProblemError

FUSING = tuple(tie for tie in TIES if tie != "linear")


@dataclass(frozen=True)
class Target:
    """A server, and what it loads.

    Attributes:
        name: The server.
        version: What is described.
        format: The exporter that writes for it.
        formats: The kind of file: see `BitAllocation`.
        bits: The options of linear layers.
        tables: The options of an embedding or a head; the first is what a search gets if nothing is said.
        group_sizes: How many inputs may share a scale; empty: any.
        symmetric: Whether there may be no zero points.
        ties: What may be tied: servers that run several layers as one need them at one width.
        caches: How it holds keys and values; empty: any pair of widths, layer by layer.
    """

    name: str
    version: str
    format: str
    formats: str
    bits: tuple[Option, ...]
    tables: tuple[Option, ...]
    group_sizes: tuple[int, ...] = ()
    symmetric: bool = False
    ties: tuple[str, ...] = TIES
    caches: str = ""

    def refuse(
        self, bits: Sequence[Option], tables: Sequence[Option], group_size: int, quantizer: Quantizer, tie: str
    ) -> None:
        """Refuse what the server does not load.

        Raises:
            ProblemError: names it, and says what would load.
        """
        for what, given, allowed in (("bits", bits, self.bits), ("embedding or head", tables, self.tables)):
            if wrong := [option for option in given if option not in allowed and not self._repaired(option)]:
                raise self._error(f"{what} of {', '.join(map(str, wrong))}", ", ".join(map(str, allowed)))
        if self.group_sizes and group_size not in self.group_sizes:
            raise self._error(f"group_size={group_size}", ", ".join(map(str, self.group_sizes)))
        if self.symmetric and not quantizer.symmetric:
            raise self._error(f"the quantizer {quantizer.name!r}, which has zero points", "'rtn-symmetric'")
        if quantizer.sliced or quantizer.binary or quantizer.simulated or max(quantizer.ranks):
            if self.format != "moopt":
                raise self._error(f"the codes of the quantizer {quantizer.name!r}", "'rtn', 'rtn-symmetric' or 'gptq'")
        if tie not in self.ties:
            raise self._error(f"tie={tie!r}", ", ".join(self.ties))

    def _repaired(self, option: Option) -> bool:
        """Whether an option is a width with a low-rank repair, which moopt's own file holds."""
        width = str(option).partition("+r")[0]
        return self.format == "moopt" and "+r" in str(option) and width.isdigit() and int(width) in self.bits

    def refuse_pairs(self) -> None:
        """Refuse pairs of widths for each layer's keys and values, if the server holds all layers alike.

        Raises:
            ProblemError: it does; says how it holds them.
        """
        if self.caches:
            raise ProblemError(f"{self.name} ({self.version}) holds {self.caches}: it has no pairs by layer.")

    def _error(self, given: str, allowed: str) -> ProblemError:
        return ProblemError(f"{self.name} ({self.version}) does not load {given}; expected {allowed}.")


TARGETS = {
    target.name: target
    for target in (
        Target("moopt", "this version", "moopt", "moopt", WIDTHS, (8, 2, 3, 4, 5, 6, 16)),
        Target(
            "transformers", "5.23 with compressed-tensors 0.20", "compressed-tensors", "moopt", WIDTHS, (16,),
            (32, 64, 128), symmetric=True, caches="keys and values of all layers at one width (QuantizedCache)",
        ),
        Target("vllm", "0.11 and later", "compressed-tensors", "moopt", (4, 8), (16,), (32, 64, 128), ties=FUSING,
            caches="keys and values of all layers as they are or in FP8 (--kv-cache-dtype)",
        ),
        Target("llama.cpp", "of 2025 and later", "gguf", "gguf", TYPES, ("q8_0", *TYPES[:-1], 16),
            caches="keys and values of all layers in one type each (--cache-type-k, --cache-type-v)",
        ),
    )
}  # fmt: skip
"""The servers by name."""


def named(name: str) -> Target:
    """A server.

    Raises:
        ProblemError: there is none of that name; lists them.
    """
    if not isinstance(name, str) or name not in TARGETS:
        raise ProblemError(f"Got target={name!r}; expected one of {', '.join(TARGETS)}.")
    return TARGETS[name]
