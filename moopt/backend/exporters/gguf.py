"""GGUF for llama.cpp, and what runs on it: one file with the vocabulary in it, of exactly the bytes that are said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from moopt.backend import models
from moopt.backend.exporters.clients import Logits, Run
from moopt.backend.exporters.shipment import Shipment, finished, raised, shipment
from moopt.backend.gguf import codes
from moopt.backend.gguf import types as gguf_types
from moopt.backend.gguf.file import GGUFFile
from moopt.backend.gguf.running import Running
from moopt.backend.gguf.types import GGUFType
from moopt.backend.options import Option, bits_of, rank_of
from moopt.errors import ExportError, QuantizationError
from moopt.exporting import Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.gguf"
ROUNDED, ROUNDED_BITS = GGUFType("q8_0"), 8
"""What 8-bit codes with zero points become, which GGUF has not."""


class GGUF(Run):
    """Types that were searched, or moopt's own codes where GGUF has the same: nothing is quantized twice."""

    name = "gguf"
    about = "llama.cpp, Ollama, LM Studio"
    everywhere = "GGUF has the same codes of"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = shipment(problem, config, self.name)
        try:
            types = _types(found)
            file = GGUFFile(found.model, models.load_config(found.model), found.layout.inventory)
            size = file.fixed_bytes(types) + sum(
                types[weight.name].bytes(weight) for weight in found.layout.inventory.weights if weight.name in types
            )
            file.write(folder / FILE, types, lambda name: _encoded(found, name, types[name]), found.parameters)
        except QuantizationError as error:
            raise ExportError(str(error)) from error
        (folder / "Modelfile").write_text(f"FROM ./{FILE}\n")
        serve = [f"llama-server -m {{path}}/{FILE}", "ollama create my-model -f {path}/Modelfile"]
        return finished(found, folder, size, serve, _notes(found))

    def raised(self, problem: Problem, config: Config) -> Config:
        symmetric = shipment(problem, config, self.name).layout.symmetric

        def holds(option: Option) -> bool:
            if option in gguf_types.NAMES:
                return True
            whole = isinstance(option, int)
            return whole and (option == ROUNDED_BITS or codes.kind(bits_of(option), symmetric) is not None)

        return raised(problem, config, self.name, holds)

    @contextmanager
    def client(self, folder: Path, context: int) -> Iterator[Logits]:
        with Running(folder / FILE, context, torch.get_num_threads()) as running:
            yield lambda row: torch.from_numpy(running.logits(row.tolist()))


def _types(found: Shipment) -> dict[str, GGUFType]:
    """The type of every quantized matrix by name."""
    types, refused = {}, {}
    for name, option in found.widths.items():
        how = found.simulated.get(option)
        kind = how if isinstance(how, GGUFType) else None
        if how is None and not rank_of(option):
            kind = ROUNDED if _rounds(found, name) else codes.kind(bits_of(option), found.layout.symmetric)
        if kind is None:
            refused[str(option)] = name
        else:
            types[name] = kind
    if refused:
        told = ", ".join(f"{option} ({name})" for option, name in refused.items())
        raise ExportError(
            f"GGUF has no type that is the same as these options: {told}. Search what it has, with target='llama.cpp'; "
            "or export with snap='up', which gives such layers the next option that is the same."
        )
    return types


def _rounds(found: Shipment, name: str) -> bool:
    """Whether a matrix has 8-bit codes with zero points: it is rounded from the original to what GGUF has."""
    option = found.widths[name]
    return option not in found.simulated and option == ROUNDED_BITS and not found.layout.symmetric


def _encoded(found: Shipment, name: str, kind: GGUFType) -> npt.NDArray[np.uint8]:
    """The bytes of a matrix."""
    option = found.widths[name]
    if option in found.simulated or _rounds(found, name):
        return kind.encoded(found.original(name))
    return codes.encoded(name, found.quantized(name, option))


def _notes(found: Shipment) -> list[str]:
    rounded = [name for name in found.widths if _rounds(found, name)]
    notes = ["llama.cpp rounds what layers read to 8 bits as it runs: its figures differ from moopt's a little."]
    if rounded:
        notes.append(
            f"{rounded[0]}{f' and {len(rounded) - 1} more' if len(rounded) > 1 else ''} had 8-bit codes with zero "
            "points, which GGUF has not: rounded from the original to Q8_0 instead."
        )
    return notes
