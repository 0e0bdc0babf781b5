"""A model that is never held whole: its blocks come one at a time from memory-mapped safetensors, the rest is held."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from moopt.backend import models
from moopt.backend.blocks import block_of, find_blocks
from moopt.backend.shards import Shards
from moopt.errors import BackendError, ModelNotFound

MIXTRAL = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
GPT_NEOX = {"embed_out": "lm_head"}
"""What a family's files call modules that transformers calls otherwise."""


class Streamed:
    """A causal language model whose blocks have no weights but while they run.

    Args:
        name: Of the model.
        device: Where it runs.
        dtype: What it computes in.

    Attributes:
        model: The transformers model; what is in none of its blocks has its weights.

    Raises:
        ModelNotFound: its files are no safetensors of a local folder.
        BackendError: it is not one list of blocks, or its files name the parameters otherwise.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self._shards, self._device, self._dtype = _shards(Path(models.location(name))), device, dtype
        self.model = models.empty(json.loads(models.portable(models.load_config(name))), dtype)
        self._prefix, blocks = find_blocks(self.model)
        if not blocks:
            raise BackendError(f"{name} is not one list of blocks, so it cannot be streamed; say stream=False.")
        self._blocks: list[dict[str, nn.Parameter]] = [{} for _ in blocks]
        for parameter, value in self.model.named_parameters():
            if parameter not in self._shards:
                raise BackendError(
                    f"The files of {name} have no {parameter!r}: they are not the whole model, or name its parameters "
                    "otherwise than transformers does, and cannot be streamed. Say stream=False."
                )
            if (found := self._shards.places[parameter].shape) != tuple(value.shape):
                raise BackendError(
                    f"{parameter!r} has the shape {found} in the files of {name}, expected {tuple(value.shape)} by its "
                    "config.json. Copy both from one model."
                )
            stage = self.stage(parameter)
            if stage is not None:
                self._blocks[stage][parameter] = value
            value.data = value.data.new_empty(0) if stage is not None else self.parameter(parameter)
        self.model.to(device)
        self._nothing = torch.empty(0, dtype=dtype, device=device)

    def stage(self, name: str) -> int | None:
        """The block of a module or parameter; None for what is always held."""
        return block_of(self._prefix, name)

    def stored(self, name: str) -> Tensor:
        """A module's weight as it is stored, mapped."""
        return self._shards[f"{name}.weight"]

    def parameter(self, name: str) -> Tensor:
        """A parameter as the original runs."""
        return self._shards[name].to(device=self._device, dtype=self._dtype)

    def parameters(self) -> Mapping[str, Tensor]:
        """All parameters by name, as they are stored, each mapped when it is asked for."""
        return self._shards

    @property
    def block_bytes(self) -> int:
        """What the largest block takes in the compute type."""
        sizes = [sum(map(self._shards.count, block)) for block in self._blocks]
        return max(sizes) * self._dtype.itemsize

    @contextmanager
    def filled(self, stage: int, without: Collection[str]) -> Iterator[None]:
        """While open, a block has its weights.

        Args:
            stage: The block.
            without: Parameters that are not needed.
        """
        block = self._blocks[stage]
        try:
            for name, parameter in block.items():
                if name not in without:
                    parameter.data = self.parameter(name)
            yield
        finally:
            for parameter in block.values():
                parameter.data = self._nothing


def _shards(folder: Path) -> Shards:
    """The tensors of a model by transformers' names, from model.safetensors or the shards that its index lists."""
    files = _files(folder)
    if missing := [file for file in files if not file.exists()]:
        raise ModelNotFound(f"There is no {missing[0]}; a model is streamed from safetensors that lie in its folder.")
    try:
        return Shards(files, _renamed)
    except ValueError as error:
        raise ModelNotFound(f"{error}. Copy the model again.") from error


def _files(folder: Path) -> list[Path]:
    """The files that a model's tensors are in: those that its index lists, or the only one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"{index} cannot be read: {error!r}. Copy it again.") from error


def _renamed(name: str) -> str:
    """A parameter's name in a file as the model has it."""
    parts = name.split(".")
    other = MIXTRAL if "block_sparse_moe" in parts else GPT_NEOX
    return ".".join(other.get(part, part) for part in parts)
