"""What each local worker gets of the machine: a GPU where there are GPUs, else its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moopt.problem import Resources

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What libraries read how many threads to use from, before they are imported."""


@dataclass(frozen=True)
class Place:
    """Where one worker runs.

    Attributes:
        resources: What its problem is set up with.
        environment: What its process's environment adds to ours.
        label: How the place is called: "GPU 1", "2 threads".
    """

    resources: Resources
    environment: Mapping[str, str]
    label: str


def places(workers: int, resources: Resources) -> list[Place]:
    """One place a worker.

    GPUs are dealt out in turn, one a worker; cores are divided. A device or a number of threads that the resources
    name holds for every worker.
    """
    threads = resources.threads or max(1, cores() // workers)
    environment = {name: str(threads) for name in THREADS}
    # A waiting OpenMP thread that spins takes the core another worker needs.
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    # Each library would otherwise start as many threads as there are cores for its tokenizer too.
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    visible = gpus() if resources.device in ("auto", "cuda") else []
    found = []
    for number in range(workers):
        own, label = dict(environment), f"{threads} thread{'s' if threads > 1 else ''}"
        if visible:
            own["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
            label = f"GPU {visible[number % len(visible)]}"
        found.append(Place(replace(resources, threads=threads), own, label))
    return found


def cores() -> int:
    """The cores this process may use: its affinity, and its container's share."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def gpus() -> list[str]:
    """The GPUs a worker may be given, as CUDA_VISIBLE_DEVICES names them; found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    listed = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(listed.iterdir())))] if listed.is_dir() else []
