"""Keeping a machine quiet while something is timed: one pinned core, and locks between the processes of moopt.

Whoever times waits until the others have finished what they compute, and they wait until the time is known. The
locks are files in the cache and go with the process that holds them. They keep away nobody but moopt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from moopt.backend import cache


@contextlib.contextmanager
def at_work(device: torch.device) -> Iterator[None]:
    """Compute while nobody times; many can at once. Not to be held by who wants to be `alone`."""
    with contextlib.ExitStack() as held:
        with _locked(device, "gate", fcntl.LOCK_SH):  # shut by who waits to be alone, so that it is their turn once
            held.enter_context(_locked(device, "work", fcntl.LOCK_SH))
        yield


@contextlib.contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Compute while no other process of moopt on this machine does."""
    with _locked(device, "gate", fcntl.LOCK_EX), _locked(device, "work", fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def pinned(device: torch.device) -> Iterator[None]:
    """On a CPU: one thread on one core while open, where the system can do that."""
    if device.type != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    cores: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        torch.set_num_threads(1)
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def folder(device: torch.device) -> Path:
    """Where what was timed on a device is kept: named after it, and after the machine."""
    name = f"{platform.node()}-{torch.cuda.get_device_name(device) if device.type == 'cuda' else _cpu_name()}"
    return cache.folder() / "latency" / "".join(c if c.isalnum() else "-" for c in name)


def cache_bytes(device: torch.device) -> int:
    """How much the device's last cache keeps; a guess where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"K": 1 << 10, "M": 1 << 20}
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        size = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))[-1].read_text().strip()
        return int(size[:-1]) * units[size[-1]]
    return 32 << 20


@contextlib.contextmanager
def _locked(device: torch.device, name: str, how: int) -> Iterator[None]:
    place = folder(device)
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.machine()
