"""Which implementation runs, and how often each one ran.

A matrix is prepacked in a layout, and the layout names the implementation: "plain" is the reference, "cpu" the C++
kernels, "triton" the GPU's. `MOOPT_KERNELS=reference|cpu|triton` overrides what a machine would choose by itself.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch

Layout = Literal["plain", "cpu", "triton"]
LAYOUTS: tuple[Layout, ...] = ("plain", "cpu", "triton")
OVERRIDES: dict[str, Layout] = {"reference": "plain", "cpu": "cpu", "triton": "triton"}
HOMES: dict[Layout, str] = {
    "plain": "moopt_kernels.plain",
    "cpu": "moopt_kernels.cpu.layout",
    "triton": "moopt_kernels.gpu.layout",
}
"""Where a layout lives: importing the module readies its implementation; `arrange` and `restore` convert codes."""

log = logging.getLogger(__name__)
READY: set[Layout] = set()
"""Layouts whose implementation is loaded."""
_homes: dict[Layout, Any] = {}
drains: list[Callable[[], dict[tuple[str, str], int]]] = []
"""What implementations that count by themselves counted since they were last asked."""
_calls: Counter[tuple[str, str]] = Counter()


class KernelError(RuntimeError):
    """A kernel was asked for that cannot run here; says why and what to do."""


def choose_layout(device: torch.device | str) -> Layout:
    """The layout whose implementation runs on a device, MOOPT_KERNELS obeyed.

    Where the fast kernels of a CPU or an NVIDIA GPU cannot run this is "plain", and one warning a process says why;
    on other devices, for which there are none, it is "plain" without one.

    Raises:
        KernelError: MOOPT_KERNELS asks for what is unknown or cannot run here.
    """
    kind = torch.device(device).type
    forced = os.environ.get("MOOPT_KERNELS")
    if not forced:
        layout: Layout = "cpu" if kind == "cpu" else "triton" if kind == "cuda" else "plain"
        if reason := _unavailable(layout, kind):
            _warn_once(f"The fast low-bit kernels do not run here, slower plain PyTorch does: {reason}")
            return "plain"
        return layout
    if forced not in OVERRIDES:
        raise KernelError(f"Got MOOPT_KERNELS={forced}; expected {', '.join(OVERRIDES)}, or unset to choose by itself.")
    if reason := _unavailable(OVERRIDES[forced], kind):
        raise KernelError(f"MOOPT_KERNELS={forced} cannot be honoured on {kind}: {reason}")
    return OVERRIDES[forced]


def home(layout: Layout) -> Any:
    """The module of a layout, ready to run.

    Raises:
        KernelError: it cannot run here.
    """
    if layout in _homes:  # looked up, not imported: this lies in graphs that are compiled
        return _homes[layout]
    if layout not in HOMES:
        raise KernelError(f"Got the layout {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    try:
        module = importlib.import_module(HOMES[layout])
    except ModuleNotFoundError as error:
        raise KernelError(f"the layout {layout!r} needs a module that is missing: {error}") from error
    READY.add(layout)
    _homes[layout] = module
    return module


def check_device(layout: Layout, device: torch.device) -> None:
    """Refuse a layout whose kernels do not run on a device.

    Raises:
        KernelError: says why and what to do.
    """
    if reason := _elsewhere(layout, device.type):
        raise KernelError(f"the layout {layout!r} cannot run on {device.type}: {reason}")


def check_together(first: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Refuse tensors of several devices: for an operator's fake, which runs wherever one of them is on "meta".

    Raises:
        ValueError: names the devices.
    """
    device = first.device
    for other in others:
        if other is not None and other.device != device:
            raise ValueError(f"Got tensors on {device} and {other.device}; expected all of them on one device.")


def count(op: str, implementation: str) -> None:
    """Note that an implementation ran; called by the implementation itself, so that compiled graphs count too."""
    _calls[op, implementation] += 1


def calls() -> dict[tuple[str, str], int]:
    """How often each (operation, implementation) ran since the last reset: ("quantized_linear", "cpu") and so on."""
    for drain in drains:
        _calls.update(drain())
    return dict(_calls)


def reset_calls() -> None:
    """Count from zero again."""
    calls()
    _calls.clear()


def _unavailable(layout: Layout, device: str) -> str | None:
    """Why a layout cannot run on a kind of device; None where it can."""
    if layout == "plain":
        return None
    if reason := _elsewhere(layout, device):
        return reason
    try:
        home(layout)
    except KernelError as error:
        return str(error)
    return None


def _elsewhere(layout: Layout, device: str) -> str | None:
    """Why a layout's kernels do not run on a kind of device, whether or not they are there."""
    if layout == "cpu" and device != "cpu":
        return "these kernels run on a CPU only"
    if layout == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; install the extra: pip install 'moopt[gpu]'"
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton runs on an NVIDIA GPU, or slowly on a CPU with TRITON_INTERPRET=1"
    return None


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)
