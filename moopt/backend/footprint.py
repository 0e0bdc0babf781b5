"""The memory that a model takes, held whole or streamed block by block, and which of the two fits here."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from moopt.backend import memory, models
from moopt.backend.candidate import choose_type
from moopt.backend.weights import block_number
from moopt.backend.workbench import Allocation
from moopt.errors import BackendError, ProblemError

logger = logging.getLogger("moopt")

Stream = bool | Literal["auto"]
WORKING = 800 << 20
"""What PyTorch, transformers and a tile of logits take, as measured."""
FACTORS = 6
"""Matrices in float64 of the widest layer's inputs that are held while a second moment is inverted."""


@dataclass(frozen=True)
class Footprint:
    """About what a model takes at its peak, in bytes, without variants that are kept as far as there is room.

    Attributes:
        whole: Held whole: on the device, or on a CPU while it is loaded.
        streamed: One block at a time; None if it cannot be streamed.
    """

    whole: int
    streamed: int | None


def check(stream: Any, problem: Allocation) -> Stream:
    """Refuse what cannot be streamed.

    Raises:
        ProblemError: says why.
    """
    if stream not in (True, False, "auto"):
        raise ProblemError(f"Got stream={stream!r}; expected True, False or 'auto'.")
    if stream is True and (why := _whole_only(problem)):
        raise ProblemError(f"Got stream=True, but {why}.")
    return "auto" if stream == "auto" else bool(stream)


def footprint(problem: Allocation, device: torch.device) -> Footprint:
    """What a problem's model takes on a device."""
    on_cpu = device.type == "cpu"
    sizes = dict(_sizes(problem))
    total, item = sum(sizes.values()), choose_type(device).itemsize if problem.is_language else 4
    stored = _on_disk(problem.model) or item * total
    linears = problem.inventory.linears()
    tables = [w for w in problem.inventory.weights if w.kind != "linear"]
    common = WORKING
    if problem.quantizer.calibrated:
        common += FACTORS * 8 * max(w.shape[1] for w in linears) ** 2
    tokens = max(problem.calibration_tokens, problem.fidelity.tokens)
    common += 2 * item * tokens * min(w.shape[1] for w in linears)
    if on_cpu:  # products with the head are in float32, the original's and the candidate's
        common += 2 * 4 * max((w.count for w in tables), default=0)
    loading = (stored if on_cpu else 0) + (item * total if not on_cpu or stored > 1.1 * item * total else 0)
    whole = loading + common
    if _whole_only(problem):
        return Footprint(whole, None)
    blocks: Counter[int | None] = Counter()
    for name, count in sizes.items():
        blocks[block_number(name)] += count
    outside = blocks.pop(None, 0)
    return Footprint(whole, item * (2 * outside + 3 * max(blocks.values(), default=0)) + common)


def streams(problem: Allocation, device: torch.device) -> bool:
    """Whether a problem's model is to be streamed: as the problem says, or where it does not fit whole.

    Raises:
        BackendError: it fits neither way.
    """
    if problem.stream != "auto":
        return bool(problem.stream)
    return chosen(problem.model, footprint(problem, device), memory.free(device), _whole_only(problem))


def chosen(model: str, needs: Footprint, free: int, whole_only: str | None = None) -> bool:
    """Whether to stream a model that needs so much where so much is free.

    Raises:
        BackendError: it fits neither way.
    """
    if needs.whole <= free:
        return False
    if needs.streamed is not None and needs.streamed <= free:
        logger.info(
            "%s takes about %s and %s are free: it is streamed, block by block.", model, _gib(needs.whole), _gib(free)
        )
        return True
    streamed = f"cannot be streamed ({whole_only})" if needs.streamed is None else f"streamed {_gib(needs.streamed)}"
    raise BackendError(
        f"{model} does not fit: held whole it takes about {_gib(needs.whole)}, {streamed}, and {_gib(free)} are free. "
        "Free memory, take fewer workers or a larger machine, or say stream=True or False to try."
    )


def _whole_only(problem: Allocation) -> str | None:
    """Why a problem's model has to be held whole, in words; None if it need not be."""
    if not problem.is_language:
        return "only causal language models are streamed"
    if problem.is_timed:
        return "decode_ms and prefill_ms are measured on a model that is held whole"
    if problem.search_metrics or problem.finalist_metrics:
        return "metrics of your own take a model that is held whole"
    return None


def _sizes(problem: Allocation) -> Iterator[tuple[str, int]]:
    yield from ((w.name, w.count) for w in problem.inventory.weights)
    yield from ((name, int(torch.Size(shape).numel())) for name, shape in problem.inventory.rest.items())


def _on_disk(model: str) -> int:
    """Bytes of the files of weights, if they are here already."""
    place = Path(models.location(model))
    files = place.iterdir() if place.is_dir() else ()
    return sum(file.stat().st_size for file in files if file.suffix in {".safetensors", ".bin"})


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
