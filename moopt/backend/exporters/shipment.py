"""A quantized candidate as exporters get it, and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from moopt.backend import models
from moopt.backend.gguf.types import GGUFType
from moopt.backend.kv import Preset
from moopt.backend.merging import Recipe
from moopt.backend.options import Option, Options
from moopt.backend.packed import Layout
from moopt.backend.quantizers import Quantized
from moopt.backend.shards import in_files
from moopt.backend.simulated import Simulated
from moopt.errors import ExportError, ProblemError, QuantizationError
from moopt.exporting import Compared, Written
from moopt.problem import Problem
from moopt.space import Config

PRESET = "kv-preset.json"
SAME_SIZE = 0.001
"""By what share a size may differ from the study's before it is said."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Shipment:
    """Every number that a quantized candidate runs with.

    Attributes:
        model: What it was made of: an embedded name, a folder or a Hugging Face id.
        layout: How moopt's own file stores it.
        widths: The options of the quantized matrices by name; all others stay at 16 bits.
        simulated: Those options that no kernel runs, by name.
        quantized: Gives the codes of a matrix by its name at any other option.
        original: Gives a matrix as the model's files have it.
        parameters: The original's parameters by name.
        tokenizer: Of the model.
        made_of: The models it was merged from, or the one it was made of.
        compared: How it was measured; None if not by the weights alone.
        bytes: What the search says that it takes.
        preset: How its keys and values are cached, if that was decided, too.
    """

    model: str
    layout: Layout
    widths: Options
    simulated: Mapping[Option, Simulated]
    quantized: Callable[[str, Option], Quantized]
    original: Callable[[str], Tensor]
    parameters: Mapping[str, Tensor]
    tokenizer: Any
    made_of: tuple[str, ...]
    compared: Compared | None
    bytes: int
    preset: Preset | None = None

    def values(self, name: str) -> Tensor:
        """What a quantized matrix stands for, n x k, float32."""
        option = self.widths[name]
        if option in self.simulated:
            weight = next(w for w in self.layout.inventory.weights if w.name == name)
            return self.simulated[option].values(weight, self.original(name))
        return self.quantized(name, option).dequantize()

    def rest(self) -> dict[str, Tensor]:
        """The parameters that are not quantized, in bfloat16, by their names in files."""
        return {self.named(name): self.parameters[name].data.to(torch.bfloat16) for name in self.layout.unquantized()}

    @property
    def is_gguf(self) -> bool:
        """Whether its options are GGUF's types."""
        return any(isinstance(how, GGUFType) for how in self.simulated.values())

    def named(self, name: str) -> str:
        """What the model's files call a parameter or a module."""
        return in_files(name, json.loads(self.layout.config)["model_type"])


@runtime_checkable
class Ships(Protocol):
    """A problem whose candidates are quantized models."""

    def shipment(self, config: Config) -> Shipment:
        """A candidate, ready to be exported."""

    def raised(self, config: Config, holds: Callable[[Option], bool], fused: bool) -> Config:
        """A candidate each option of which holds: the same where it does, else the next larger one that does.

        Args:
            config: The candidate.
            holds: Whether an option does.
            fused: Whether layers that servers run as one get one option.

        Raises:
            ProblemError: a decision has none; names it.
        """


@runtime_checkable
class Merges(Protocol):
    """A problem whose candidates are merges."""

    models: dict[str, str]
    base: str | None

    def recipe(self, config: Config) -> Recipe:
        """The merge that a configuration stands for."""

    def save(self, config: Config, path: Path) -> Path:
        """Write a merge as safetensors in the layout of the base."""


def shipment(problem: Problem, config: Config, format: str) -> Shipment:
    """A problem's candidate.

    Raises:
        ExportError: its candidates are no quantized models.
    """
    return _told(lambda: _ships(problem, format).shipment(config))


def raised(
    problem: Problem, config: Config, format: str, holds: Callable[[Option], bool], fused: bool = False
) -> Config:
    """A problem's candidate with options that hold; if `fused`, the same for all layers that servers run as one.

    Raises:
        ExportError: its candidates are no quantized models, or a decision has no such option.
    """
    return _told(lambda: _ships(problem, format).raised(config, holds, fused))


def _ships(problem: Problem, format: str) -> Ships:
    if not isinstance(problem, Ships):
        others = "; kv-preset and kvtuner hold pairs of keys and values" if hasattr(problem, "pairs") else ""
        raise ExportError(f"{format} holds quantized models; {type(problem).__name__} decides no weights{others}.")
    return problem


def _told(make: Callable[[], Made]) -> Made:
    """What is made; a problem's own error as one of exporting."""
    try:
        return make()
    except (ProblemError, QuantizationError) as error:
        raise ExportError(str(error)) from error


def coded(problem: Problem, config: Config, format: str) -> Shipment:
    """A problem's candidate, every quantized matrix of which has codes.

    Raises:
        ExportError: its candidates are no quantized models, or a matrix is simulated.
    """
    found = shipment(problem, config, format)
    if others := [f"{name} is {option!r}" for name, option in found.widths.items() if option in found.simulated]:
        raise ExportError(
            f"{format} holds codes, and {others[0]}, which is simulated. Pick a candidate that has widths only, or "
            "export 'checkpoint', or 'gguf' if the options are GGUF's types."
        )
    return found


def written(
    size: int, serve: Sequence[str], notes: Sequence[str], made_of: Sequence[str], compared: Compared | None = None
) -> Written:
    """What an exporter says of what it wrote, with the licence that all models have from which it was made."""
    licences = {place: models.licence(place) for place in made_of}
    alike = set(licences.values())
    told = [f"{Path(place).name}: {licence or 'no licence named'}" for place, licence in licences.items()]
    differing = [] if len(alike) == 1 else ["It was made of models of several licences: " + "; ".join(told) + "."]
    bases = [name for name in map(models.hub_name, made_of) if name]
    licence = alike.pop() if len(alike) == 1 else ""
    return Written(size, serve, [*notes, *differing], bases, licence, compared)


def finished(found: Shipment, folder: Path, size: int, serve: Sequence[str], notes: Sequence[str]) -> Written:
    """What an exporter says of a quantized model that it wrote; its preset is written beside it, if it has one."""
    said = list(notes)
    if abs(size - found.bytes) > SAME_SIZE * size:
        said.append(
            f"It takes {size / 1e6:,.2f} MB in this format; the {found.bytes / 1e6:,.2f} MB of the study are of "
            f"{'llama.cpp' if found.is_gguf else 'moopt'}'s own file."
        )
    if found.preset is not None:
        found.preset.save(folder / PRESET)
        said.append(
            f"Its figures were measured with keys and values cached as {PRESET} says (see moopt.backend.kv); with a "
            "cache at full width it is another, better candidate."
        )
    return written(size, serve, said, found.made_of, found.compared)


def write_beside(folder: Path, found: Shipment, quantization: Mapping[str, Any] | None = None) -> None:
    """The configuration, how the model generates, and the tokenizer, as transformers reads them."""
    config = models.load_config(found.model)
    config.dtype = torch.bfloat16
    if quantization is not None:
        config.quantization_config = dict(quantization)
    config.save_pretrained(folder)
    if generation := models.generation(found.model):
        (folder / "generation_config.json").write_text(generation)
    found.tokenizer.save_pretrained(folder)
