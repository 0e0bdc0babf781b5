"""What a bit allocation decides, what it fixes, and how many bytes all of it takes in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.backend import formats as number_formats
from moopt.backend import models, quantizers, weights
from moopt.backend.exporters import words
from moopt.backend.external import External
from moopt.backend.gguf import types as gguf_types
from moopt.backend.gguf.file import GGUFFile
from moopt.backend.gguf.types import GGUFType
from moopt.backend.options import Option, bits_of
from moopt.backend.packed import Layout
from moopt.backend.quantizers import Quantizer
from moopt.backend.simulated import Simulated
from moopt.backend.taps import Decision
from moopt.backend.targets import Target
from moopt.backend.weights import Inventory, Weight
from moopt.errors import ProblemError, QuantizationError
from moopt_problems import options

TABLES = ("embedding", "head")
FORMATS = ("moopt", "gguf")
"""Files that a search can be about: moopt's own, whose codes others can read, too, and llama.cpp's."""


@dataclass(frozen=True)
class Asked:
    """What a user asked for.

    Attributes:
        model: Its name.
        config: Its configuration.
        inventory: Its matrices.
        bits, group_size, quantizer, tie, embedding, head, skip, formats: As `BitAllocation` takes them.
        external: Opened files by the names of their options.
    """

    model: str
    config: Any
    inventory: Inventory
    bits: Sequence[Option] | None
    group_size: int
    quantizer: Quantizer
    tie: str
    embedding: Option | Sequence[Option]
    head: Option | Sequence[Option]
    skip: tuple[str, ...]
    formats: str
    external: Mapping[str, External]
    server: Target | None


def said(
    bits: Sequence[Option] | None, quantizer: str | Quantizer | None, embedding: Option | Sequence[Option] | None,
    formats: str | None, server: Target | None,
) -> tuple[Sequence[Option] | None, str | Quantizer, Option | Sequence[Option], str]:  # fmt: skip
    """The arguments, with what is meant where nothing is said: what the server loads.

    Returns:
        Bits, None for those of GGUF's types that are best at their bytes; quantizer, embedding, formats.

    Raises:
        ProblemError: formats and server do not go together, or GGUF's types with a quantizer.
    """
    kind = formats if formats is not None else server.formats if server is not None else FORMATS[0]
    if kind not in FORMATS or (server is not None and kind != server.formats):
        expected = ", ".join(FORMATS) if server is None else f"{server.formats}, which {server.name} loads"
        raise ProblemError(f"Got formats={formats!r}; expected {expected}.")
    if kind == "gguf" and quantizer is not None:
        raise ProblemError(f"Got quantizer={quantizer!r}; GGUF's types are made as llama.cpp makes them: leave it out.")
    if bits is None and kind != "gguf":
        bits = quantizers.WIDTHS if server is None else server.bits
    if quantizer is None:
        quantizer = "rtn-symmetric" if server is not None and server.symmetric else "rtn"
    if embedding is None:
        embedding = server.tables[0] if server is not None else "q8_0" if kind == "gguf" else 8
    return bits, quantizer, embedding, kind


class Storage:
    """Every matrix of a model, and how it may be stored.

    Attributes:
        decided: What is decided, by name; options in the order of their bytes.
        fixed: The option of every matrix that has only one.
        layout: moopt's own file.
        fused: Linear layers that servers run as one.
        simulated: Options that no kernel runs, by name.

    Raises:
        QuantizationError, ProblemError: a layer cannot have what was asked; says what would fit.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        whole = asked.formats == "gguf"
        self._gguf = GGUFFile(asked.model, asked.config, asked.inventory) if whole else None
        if asked.tie not in weights.TIES:
            raise ProblemError(f"Got tie={asked.tie!r}; expected one of {', '.join(weights.TIES)}.")
        left_out = {w.name for w in weights.skipped(asked.inventory.weights, asked.skip)}
        linears = tuple(w for w in asked.inventory.linears() if w.name not in left_out)
        if not linears:
            raise ProblemError(f"{asked.model} has no linear layer left to quantize.")
        options.check_ranks(asked.quantizer.ranks, linears)
        own = self._own()
        names, widths = tuple(map(str, own)), () if whole else quantizers.WIDTHS
        bits = None if asked.bits is None else options.listed("bits", asked.bits, names, widths)
        every: dict[Option, Simulated] = {**own, **dict(asked.external.items())}
        self.decided: dict[str, Decision] = {}
        for name, members in weights.groups(linears, asked.tie).items():
            chosen = gguf_types.best(members) if bits is None else bits
            found = options.of_layers(chosen, asked.quantizer.ranks, own, asked.external, members)
            self.decided[name] = Decision(members, found)
        self.fixed: dict[str, Option] = {}
        for kind, given in (("embedding", asked.embedding), ("head", asked.head)):
            table = asked.inventory.table(kind)
            if table is None or table.name in left_out:
                continue
            offered = options.of_table(kind, given, (*names, *asked.external), widths)
            if len(offered) > 1:
                self.decided[kind] = Decision((table,), offered)
            elif offered[0] == 16:
                left_out.add(table.name)
            else:
                self.fixed[table.name] = offered[0]
        self.fused = [m for m in weights.groups(asked.inventory.linears(), "fused").values() if len(m) > 1]
        if asked.server is not None:
            self._serve(asked.server, left_out)
        quantized = [(w, b) for d in self.decided.values() for w in d.weights for b in d.options]
        quantized += [(w, self.fixed[w.name]) for w in asked.inventory.weights if w.name in self.fixed]
        for weight, option in quantized:
            if option not in asked.external:
                self._check(weight, option)
        self.layout = self._layout(frozenset(left_out))
        self.simulated = {option: every[option] for _, option in quantized if option in every}
        for name, decision in self.decided.items():  # of equal bytes they stay as they are
            ordered = sorted(decision.options, key=partial(self.bytes, decision.weights))
            self.decided[name] = Decision(decision.weights, tuple(ordered))

    def bytes(self, matrices: Sequence[Weight], option: Option) -> int:
        """What matrices take in a file at an option."""
        if option in self.simulated:
            return sum(map(self.simulated[option].bytes, matrices))
        if self._asked.server is not None and self._asked.server.format == "compressed-tensors":
            size, symmetric = self._asked.group_size, self._asked.quantizer.symmetric
            return sum(words.compressed_bytes(w.shape, bits_of(option), size, symmetric) for w in matrices)
        return sum(self.layout.matrix_bytes(weight, option) for weight in matrices)

    @cached_property
    def costs(self) -> npt.NDArray[np.int64]:
        """Bytes of each decision at each option, [decisions, options]; -1 where it has no such option."""
        table = np.full((len(self.decided), max(len(d.options) for d in self.decided.values())), -1, dtype=np.int64)
        for row, decision in enumerate(self.decided.values()):
            for column, option in enumerate(decision.options):
                table[row, column] = self.bytes(decision.weights, option)
        return table

    @cached_property
    def fixed_bytes(self) -> int:
        """What the file takes besides what is decided."""
        tables = [w for w in self._asked.inventory.weights if w.name in self.fixed]
        rest = self.layout.fixed_bytes() if self._gguf is None else self._gguf.fixed_bytes(self._types())
        return rest + sum(self.bytes((w,), self.fixed[w.name]) for w in tables)

    def _types(self) -> dict[str, GGUFType]:
        """Some type for every matrix that has one: of the bytes of the rest it does not matter which."""
        own = set(gguf_types.NAMES)  # files of other tools have names of their own
        chosen = {w.name: [*d.options] for d in self.decided.values() for w in d.weights}
        chosen |= {name: [option] for name, option in self.fixed.items()}
        types = {name: next((o for o in offered if o in own), "q8_0") for name, offered in chosen.items()}
        return {name: GGUFType(str(option)) for name, option in types.items()}

    def _own(self) -> dict[Option, Simulated]:
        """The options that no kernel runs, files of other tools left out."""
        if self._asked.formats == "gguf":
            return {name: GGUFType(name) for name in gguf_types.NAMES}
        return {name: number_formats.Format(name, self._asked.group_size) for name in number_formats.NAMES}

    def _check(self, weight: Weight, option: Option) -> None:
        """Refuse an option that a matrix cannot have."""
        if self._asked.formats == "gguf":
            kind = GGUFType(str(option))
            if not kind.has(weight):
                fitting = ", ".join(name for name in gguf_types.NAMES if GGUFType(name).has(weight)) or "none"
                raise QuantizationError(
                    f"{option} does not fit the {weight.shape[1]} inputs of {weight.name}; types that do: {fitting}."
                )
            return
        widths = () if option in number_formats.NAMES else (bits_of(option),)
        quantizers.check(weight.name, weight.shape, widths, self._asked.group_size)

    def _serve(self, server: Target, left_out: set[str]) -> None:
        """Refuse what the server does not load."""
        for members in self.fused if "linear" not in server.ties else ():
            skipped = [weight.name for weight in members if weight.name in left_out]
            if 0 < len(skipped) < len(members):
                raise ProblemError(
                    f"{server.name} runs {', '.join(weight.name for weight in members)} as one layer; skip all of "
                    f"them, or none: got {', '.join(skipped)}."
                )
        tables = [o for kind in TABLES if kind in self.decided for o in self.decided[kind].options]
        layers = {o: None for name, d in self.decided.items() if name not in TABLES for o in d.options}
        server.refuse(
            list(layers),
            [*tables, *self.fixed.values()],
            self._asked.group_size,
            self._asked.quantizer,
            self._asked.tie,
        )

    def _layout(self, left_out: frozenset[str]) -> Layout:
        asked, how = self._asked, self._asked.quantizer
        generation = models.generation(asked.model) if models.generates(asked.config) else ""
        return Layout(
            asked.inventory, asked.group_size, how.symmetric, left_out, models.portable(asked.config), generation,
            how.sliced, how.binary, max(how.ranks),
        )  # fmt: skip
