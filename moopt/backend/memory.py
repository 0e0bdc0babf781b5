"""What memory is free; and freed memory goes back to the system, which the allocator would keep otherwise."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import torch


def free(device: torch.device) -> int:
    """Bytes that are free on a device now, or could be: files that are only cached do not count."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:  # not Linux: half of what the machine has
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def give_back() -> None:
    """Return freed pages to the system, where the C library can."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
