"""One loaded model that becomes any candidate: widths are switched by swapping weights, never by loading again."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moopt.backend.quantizers import Quantized
from moopt.backend.variants import VariantStore
from moopt.backend.weights import Weight, module_of

FRACTION_OF_MEMORY = 0.35
"""The share of free memory that dequantized variants may keep; the rest is quantized again when needed."""

Quantizer = Callable[[Tensor, int, int], Quantized]
Widths = Mapping[str, int]
"""The width of each weight by name; a weight that is missing keeps its original."""


class Candidate:
    """A model whose matrices can each be set to any width.

    Args:
        model: The original, with weights; it is taken over and moved to the device in the compute type.
        weights: The matrices that may be switched.
        quantizer: Makes a variant from the original matrix, a width and the group size.
        group_size: How many inputs share a scale.
        device: Where it runs.
        dtype: What it computes in.
        reload: Loads the original again, so that its weights need not be held once all variants are made.
        store: Where variants are kept for other processes and the next time; on a CPU they run from there.
        kind: What identifies the quantizer and the group size in the store.
    """

    def __init__(
        self, model: Any, weights: tuple[Weight, ...], quantizer: Quantizer, group_size: int,
        device: torch.device, dtype: torch.dtype, reload: Callable[[], Any] | None = None,
        store: VariantStore | None = None, kind: str = "",
    ) -> None:  # fmt: skip
        self._store, self._kind = store, kind
        self._reload = reload
        self.weights, self._quantizer, self._group_size = weights, quantizer, group_size
        self._stored: dict[str, Tensor] = {w.name: module_of(model, w).weight.data for w in weights}
        self.model = model.to(device=device, dtype=dtype)
        self.device, self.dtype = device, dtype
        self._type = str(dtype).removeprefix("torch.")
        self._modules = {w.name: module_of(self.model, w) for w in weights}
        if self.device.type == "cpu":
            for name, module in self._modules.items():
                module.weight.data = self._shared("original", name, self._type, partial(getattr, module.weight, "data"))
        self._originals: dict[str, Tensor] = {name: module.weight.data for name, module in self._modules.items()}
        self._variants: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._sizes: dict[tuple[str, int], int] = {}
        self._room = room_for_variants(device)
        self.current: dict[str, int] = {}

    def use(self, widths: Widths) -> None:
        """Become the candidate with these widths; weights that are not named become the original's."""
        for name in self._modules:
            if self.current.get(name) != widths.get(name):
                self._set(name, self.weight(name, widths.get(name)))
        self.current = dict(widths)

    def prepare(self, widths: Mapping[str, tuple[int, ...]]) -> None:
        """Quantize every matrix to the widths it may have, as far as there is room; let go of the stored weights."""
        for name, options in widths.items():
            for bits in options:
                if self._room > 0:
                    self.weight(name, bits)
        wider = any(weight.dtype != self.dtype for weight in self._stored.values())
        if self._reload is not None and wider:
            self._stored = {}

    def weight(self, name: str, bits: int | None) -> Tensor:
        """A matrix as it runs at a width (None: the original), n x k, on the device in the compute type."""
        if bits is None:
            return self._originals[name]
        key = (name, bits)
        if key in self._variants:
            self._variants.move_to_end(key)
            return self._variants[key]
        width = f"{bits}-{self._type}"
        variant = self._shared(self._kind, name, width, lambda: self.quantized(name, bits).dequantize(self.dtype))
        mapped = self.device.type == "cpu" and self._store is not None and self._store.has(self._kind, name, width)
        self._keep(key, variant := variant.to(self.device), 0 if mapped else variant.nbytes)
        return variant

    def widened(self, name: str, bits: int | None) -> Tensor:
        """A matrix as it runs at a width, in float32, for products that are not to be rounded."""
        kind, width = ("original", "float32") if bits is None else (self._kind, f"{bits}-{self._type}-float32")
        return self._shared(kind, name, width, lambda: self.weight(name, bits).float()).to(self.device)

    def quantized(self, name: str, bits: int) -> Quantized:
        """The codes, scales and zero points of a matrix at a width, made from the weights as they are stored."""
        return self._quantizer(self.stored(name).to(self.device), bits, self._group_size)

    def stored(self, name: str) -> Tensor:
        """The original matrix in the type it is stored in."""
        if not self._stored and self._reload is not None:
            original = self._reload()
            self._stored = {w.name: module_of(original, w).weight.data for w in self.weights}
        return self._stored[name]

    def _set(self, name: str, weight: Tensor) -> None:
        self._modules[name].weight.data = weight

    def _shared(self, kind: str, name: str, width: str, make: Callable[[], Tensor]) -> Tensor:
        """What the store has, or what is made where there is no store."""
        return make() if self._store is None else self._store.fetch(kind, name, width, lambda: make().cpu())

    def _keep(self, key: tuple[str, int], variant: Tensor, size: int) -> None:
        """Hold a variant that takes `size` bytes of this process's memory, in place of others if there is no room."""
        self._variants[key] = variant
        self._sizes[key] = size
        self._room -= size
        while self._room < 0 and len(self._variants) > 1:
            self._room += self._sizes.pop(self._variants.popitem(last=False)[0])


def room_for_variants(device: torch.device) -> int:
    """Bytes that variants may take on a device: a share of what is free now."""
    if device.type == "cuda":
        return int(FRACTION_OF_MEMORY * torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:  # not Linux: half of what the machine has
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(FRACTION_OF_MEMORY * free)


def choose_device(device: str) -> torch.device:
    """The device that "auto" stands for, or the named one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
