"""moopt.load: a packed file as a transformers model that runs on the kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from moopt.backend import packed
from moopt.backend.candidate import choose_device
from moopt.backend.convert import convert
from moopt.backend.models import generates
from moopt.errors import BackendError


def load(
    path: str | os.PathLike[str], slices: str | None = None, device: str = "auto", dtype: torch.dtype = torch.bfloat16
) -> Any:
    """Load a packed file as a transformers model that runs from the packed codes.

    It generates like any other (`model.generate`); it cannot be trained. The tokenizer's files stand beside the file:
    `AutoTokenizer.from_pretrained(path.parent)`.

    Args:
        path: What `BitAllocation.save` or `save_front` wrote.
        slices: The slice map to run, where the file has some; None runs what is stored.
        device: "auto", "cpu", "cuda" or "cuda:0".
        dtype: What it computes in.

    Raises:
        BackendError: the file is none of moopt's or damaged, or has no such slice map.
    """
    file = packed.read(Path(path))
    if not file.config:
        raise BackendError(f"{path} has no configuration of a model in it; write it with BitAllocation.save.")
    if slices is not None and slices not in file.slices:
        named = ", ".join(file.slices) or "none"
        raise BackendError(f"{path} has no slice map {slices!r}; it has {named}.")
    place = choose_device(device)
    model = empty(file.config, dtype)
    fill(model, file.rest)
    convert(model, file.matrices, place, file.slices[slices] if slices else None)
    return model.to(place)


def empty(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A model whose parameters are not filled yet: that takes no time, and no memory until they are."""
    found = AutoConfig.for_model(**config)
    kind: Any = AutoModelForCausalLM if generates(found) else AutoModel
    with no_init_weights():
        model = kind.from_config(found, dtype=dtype)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def fill(model: Any, parameters: Mapping[str, Tensor]) -> None:
    """Set parameters by name."""
    own = dict(model.named_parameters())
    for name, value in parameters.items():
        if name not in own or own[name].shape != value.shape:
            raise BackendError(f"The model has no parameter {name!r} of shape {list(value.shape)}.")
        own[name].data = value.to(own[name].dtype, copy=True)
