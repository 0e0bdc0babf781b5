"""How a kernel is launched: candidate configurations, the fastest of which is measured once a GPU and kept as JSON."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton

from moopt_kernels.folder import cache_folder

log = logging.getLogger(__name__)

INTERPRETED = bool(triton.knobs.runtime.interpret)
FUSED = {} if INTERPRETED else {"enable_fp_fusion": True}
"""Triton's releases differ in whether a multiplication and an addition fuse unless told; with them numbers would."""


@dataclass(frozen=True)
class Config:
    """A kernel's tile and how it is run.

    Attributes:
        rows: Outputs a program computes.
        columns: Inputs it reads at a time, filled up.
        tokens: Rows of x a program computes; 1 for a matrix times a vector.
        splits: Among how many programs the inputs are divided.
        warps: Warps a program has.
        stages: How many tiles are on their way at a time.
    """

    rows: int
    columns: int
    tokens: int = 1
    splits: int = 1
    warps: int = 4
    stages: int = 3


def fastest(
    kernel: str, key: tuple[int | str, ...], configs: Sequence[Config], run: Callable[[Config], object]
) -> Config:
    """The configuration that ran fastest on this GPU; measured where it is not known yet.

    The first one is taken without measuring in the interpreter, and while a CUDA graph is being captured.

    Args:
        kernel: Name of the kernel.
        key: What the choice depends on: bucket of M, N, K, group, bits.
        configs: What may be chosen, the most promising first.
        run: Launches the kernel.
    """
    if INTERPRETED or len(configs) == 1:
        return configs[0]
    name = "-".join(map(str, (kernel, *key)))
    known = _known(path := _path())
    if name in known and known[name] in configs:
        return known[name]
    if torch.cuda.is_current_stream_capturing():
        return configs[0]
    times = [_milliseconds(functools.partial(run, config)) for config in configs]
    known[name] = configs[times.index(min(times))]
    _store(path, known)
    return known[name]


def _milliseconds(run: Callable[[], object]) -> float:
    try:
        return float(triton.testing.do_bench(run, return_mode="median"))
    except triton.runtime.errors.OutOfResources as error:
        log.debug("left out a configuration: %s", error)
        return float("inf")


def _path() -> Path:
    """Where this GPU's choices are kept; another Triton measures anew."""
    gpu = torch.cuda.get_device_name().replace(" ", "-").replace("/", "-")
    return cache_folder() / f"{gpu}-triton-{triton.__version__}.json"


@functools.cache
def _known(path: Path) -> dict[str, Config]:
    try:
        return {name: Config(**config) for name, config in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("Cannot read %s (%s); the kernels are measured anew.", path, error)
        return {}


def _store(path: Path, known: dict[str, Config]) -> None:
    """Written whole or not at all; of two processes that measured at once, the later one's choices stay."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tuning-") as folder:
            made = Path(folder) / path.name
            made.write_text(
                json.dumps({name: asdict(config) for name, config in known.items()}, indent=1, sort_keys=True)
            )
            made.replace(path)
    except OSError as error:
        log.warning("Cannot keep %s (%s): the kernels are measured anew in each process.", path, error)
