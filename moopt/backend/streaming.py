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
from moopt.backend.shards import of_model
from moopt.errors import BackendError


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
        self._shards, self._device, self._dtype = of_model(Path(models.location(name))), device, dtype
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
