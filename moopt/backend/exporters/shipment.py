"""A quantized candidate as exporters get it, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from moopt.backend import models
from moopt.backend.merging import Recipe
from moopt.backend.options import Option, Options
from moopt.backend.packed import Layout
from moopt.backend.quantizers import Quantized
from moopt.errors import ExportError
from moopt.problem import Problem
from moopt.space import Config


@dataclass(frozen=True)
class Shipment:
    """Every number that a quantized candidate runs with.

    Attributes:
        model: What it was made of: an embedded name, a folder or a Hugging Face id.
        layout: How moopt's own file stores it.
        widths: The options of the quantized matrices by name; all others stay at 16 bits.
        quantized: Gives a matrix by its name at an option.
        parameters: The original's parameters by name.
        tokenizer: Of the model.
    """

    model: str
    layout: Layout
    widths: Options
    quantized: Callable[[str, Option], Quantized]
    parameters: Mapping[str, Tensor]
    tokenizer: Any

    def rest(self) -> dict[str, Tensor]:
        """The parameters that are not quantized, in bfloat16, by name."""
        return {name: self.parameters[name].data.to(torch.bfloat16) for name in self.layout.unquantized()}


@runtime_checkable
class Ships(Protocol):
    """A problem whose candidates are quantized models."""

    def shipment(self, config: Config) -> Shipment:
        """A candidate, ready to be exported."""


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
    if not isinstance(problem, Ships):
        raise ExportError(f"{format} holds quantized models; {type(problem).__name__} decides no widths.")
    return problem.shipment(config)


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
