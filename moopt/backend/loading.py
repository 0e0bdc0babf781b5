"""moopt.load: a packed file as a transformers model that runs on the kernels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moopt.backend import packed
from moopt.backend.candidate import choose_device
from moopt.backend.convert import convert
from moopt.backend.models import empty
from moopt.backend.quantizers import Repair
from moopt.errors import BackendError
from moopt_kernels import Prepacked, choose_layout

TYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernels compute in."""


def load(
    path: str | os.PathLike[str], slices: str | None = None, device: str = "auto", dtype: torch.dtype = torch.bfloat16
) -> Any:
    """Load a packed file as a transformers model that runs from the packed codes.

    It generates like any other (`model.generate`); it cannot be trained. The tokenizer's files stand beside the file:
    `AutoTokenizer.from_pretrained(path.parent)`.

    Args:
        path: What `BitAllocation.save` or `save_slices` wrote.
        slices: The slice map to run, where the file has some; None runs what is stored.
        device: "auto", "cpu", "cuda" or "cuda:0".
        dtype: What it computes in: bfloat16, float16 or float32.

    Raises:
        BackendError: the file is none of moopt's, is damaged, is not the whole of its model or has no such slice map;
            or the device is not there, or the kernels do not compute in the type.
    """
    place = choose_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"Got device={device!r}, but PyTorch finds no GPU here; expected 'auto' or 'cpu'.")
    if dtype not in TYPES:
        raise BackendError(f"Got dtype={dtype}; expected one of {', '.join(map(str, TYPES))}.")
    file = packed.read(Path(path))
    if not file.config:
        raise BackendError(f"{path} has no configuration of a model in it; write it with BitAllocation.save.")
    if slices is not None and (not isinstance(slices, str) or slices not in file.slices):
        named = ", ".join(file.slices) or "none"
        raise BackendError(f"{path} has no slice map {slices!r}; it has {named}.")
    try:
        model = empty(file.config, dtype, file.generation)
    except Exception as error:  # whatever transformers says to a configuration of which it can make nothing
        raise BackendError(f"{path} has a configuration that makes no model: {error!r}") from error
    _complete(model, file, Path(path))
    fill(model, file.rest)
    matrices = {name: _in_memory(matrix, choose_layout(place)) for name, matrix in file.matrices.items()}
    repairs = {name: Repair(*(part.clone() for part in repair)) for name, repair in file.repairs.items()}
    convert(model, matrices, place, None if slices is None else file.slices[slices], repairs)
    return model.to(place)


def fill(model: Any, parameters: Mapping[str, Tensor]) -> None:
    """Set parameters by name."""
    own = dict(model.named_parameters())
    for name, value in parameters.items():
        if name not in own or own[name].shape != value.shape:
            raise BackendError(f"The model has no parameter {name!r} of shape {list(value.shape)}.")
        own[name].data = value.to(own[name].dtype, copy=True)


def _complete(model: Any, file: packed.Packed, path: Path) -> None:
    """Refuse a file that leaves parameters of its model unset: they would be whatever the memory holds."""
    given = {*file.rest, *(f"{name}.weight" for name in file.matrices)}
    if missing := [name for name, _ in model.named_parameters() if name not in given]:
        raise BackendError(
            f"{path} is not the whole of its model: {missing[0]} is missing, {len(missing)} parameters in all. "
            "Write or copy it again."
        )


def _in_memory(matrix: Prepacked, layout: str) -> Prepacked:
    """A matrix that does not change when its file is written to: other layouts are copies, but for single scales."""
    zeros = None if matrix.zeros is None else matrix.zeros.clone()
    codes = matrix.codes.clone() if layout == matrix.layout else matrix.codes
    return replace(matrix, codes=codes, scales=matrix.scales.clone(), zeros=zeros)
