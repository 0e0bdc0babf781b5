"""One loaded model that becomes any candidate: widths are switched by swapping matrices, never by loading again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moopt.backend import memory
from moopt.backend.calibration import Calibration
from moopt.backend.inputs import Inputs
from moopt.backend.options import Option, Options, bits_of
from moopt.backend.quantized_linear import QuantizedLinear
from moopt.backend.quantizers import Quantizer
from moopt.backend.simulated import Simulated
from moopt.backend.steps import steps
from moopt.backend.streaming import Streamed
from moopt.backend.variant_store import VariantStore
from moopt.backend.variants import Variants
from moopt.backend.weights import Weight, module_of
from moopt.errors import BackendError
from moopt_kernels import Prepacked, choose_layout

FRACTION_OF_MEMORY = 0.35
"""The share of free memory that variants may keep; the rest is quantized again when needed."""


class Candidate:
    """A model whose matrices can each be set to any width.

    Where kernels run, linear layers run from packed codes, the same as in an exported model; the embedding and the
    output head are dense, made of the same codes, as measures take products with them. Elsewhere all weights are dense,
    and what is simulated is so everywhere.

    Args:
        model: The original, with weights; it is taken over and moved to the device in the compute type.
        weights: The matrices that may be switched.
        quantizer: Makes variants. One that is calibrated rounds to nearest, in its way, until `calibrate` is called.
        group_size: How many inputs share a scale.
        device: Where it runs.
        dtype: What it computes in.
        reload: Loads the original again, so that its weights need not be held once all variants are made.
        store: Where variants are kept for other processes and the next time; on a CPU they run from there.
        simulated: Options besides widths and repairs, by name.
        stream: The model, if it is not held whole: its blocks have weights only while they are `resident`.
    """

    def __init__(
        self, model: Any, weights: tuple[Weight, ...], quantizer: Quantizer, group_size: int,
        device: torch.device, dtype: torch.dtype, reload: Callable[[], Any] | None = None,
        store: VariantStore | None = None, simulated: Mapping[Option, Simulated] | None = None,
        stream: Streamed | None = None,
    ) -> None:  # fmt: skip
        self.calibration: Calibration | None = None
        self._reload, self._stream = reload, stream
        originals = dict(model.named_parameters()) if stream is None else stream.parameters()
        for how in (simulated or {}).values():
            how.check(originals)
        self.weights = weights
        held = [w for w in weights if stream is None or stream.stage(w.name) is None]
        self._stored: dict[str, Tensor] = {w.name: module_of(model, w).weight.data for w in held}
        self.model = model.to(device=device, dtype=dtype)
        self.device, self.dtype, self.layout = device, dtype, choose_layout(device)
        self._modules = {w.name: module_of(self.model, w) for w in weights}
        mapped = device.type == "cpu" and stream is None
        if mapped and store is not None:
            for name, module in self._modules.items():
                values, form = partial(getattr, module.weight, "data"), str(dtype).removeprefix("torch.")
                module.weight.data = store.fetch("original", name, form, values)
        self._originals: dict[str, Tensor] = {w.name: self._modules[w.name].weight.data for w in held}
        linears = [w.name for w in weights if w.kind == "linear" and type(self._modules[w.name]) is nn.Linear]
        room = room_for_variants(device) if stream is None or device.type == "cuda" else stream.block_bytes
        self.variants = Variants(
            weights, linears, quantizer, group_size, device, dtype, self.stored, self._inputs, room, store, mapped,
            simulated or {},
        )  # fmt: skip
        self._layers: dict[str, QuantizedLinear] = {}
        self._dense_now: dict[str, Tensor] = {}
        self._differentiated = False
        self.current: dict[str, Option] = {}

    @property
    def streams(self) -> bool:
        """Whether the model is not held whole."""
        return self._stream is not None

    def calibrate(self, calibration: Calibration) -> None:
        """Quantize from now on by what the original's layers read on a text. Nothing is run before it is needed."""
        self.calibration = calibration
        self.variants.calibrated(calibration.key)

    def use(self, widths: Options) -> None:
        """Become the candidate with these options; weights that are not named become the original's."""
        changed = [name for name in self._originals if self.current.get(name) != widths.get(name)]
        for name in steps(changed, "Quantizing"):
            self._set(name, widths.get(name))
        self.current = dict(widths)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """While open, the candidate runs from dense weights of the same values, which gradients pass through."""
        packed = [n for n, option in self.current.items() if self.variants.packs(n, option) and n in self._originals]
        self._differentiated = True
        try:
            for name in packed:
                self._dense_now[name] = self.weight(name, self.current[name])
                self._modules[name].weight.data = self._dense_now[name]
                self._put(name, self._modules[name])
            yield
        finally:
            self._dense_now, self._differentiated = {}, False
            for name in packed:
                self._modules[name].weight.data = self._originals[name]
                self._put(name, self._layers[name])

    @contextmanager
    def resident(self, stage: int) -> Iterator[None]:
        """While open, a block of a streamed model has its weights, at the widths that were set."""
        if self._stream is None:
            yield
            return
        options = {n: option for n, option in self.current.items() if self._stream.stage(n) == stage}
        for name, option in options.items():
            self.variants.parts(name, option)  # may have to run the original's block, so before it is another's
        with self._stream.filled(stage, [f"{name}.weight" for name in options]):
            try:
                for name, option in options.items():
                    self._set(name, option)
                yield
            finally:
                for name in options:
                    self._put(name, self._modules[name])
                    self._layers.pop(name, None)

    @contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """While open, matrices that no width is set for have other values."""
        try:
            for name, matrix in values.items():
                self._modules[name].weight.data = matrix
            yield
        finally:
            for name in values:
                self._modules[name].weight.data = self._originals[name]

    def prepare(self, widths: Mapping[str, tuple[Option, ...]]) -> None:
        """Quantize every matrix to the options it may have, as far as there is room; let go of the stored weights."""
        for name in steps(list(widths), "Quantizing"):
            for option in widths[name]:
                if (not self.variants.is_stored(name, option)) if self.streams else (self.variants.room > 0):
                    self.variants.parts(name, option)
        wider = any(weight.dtype != self.dtype for weight in self._stored.values())
        if self._reload is not None and wider:
            self._stored = {}

    def weight(self, name: str, option: Option | None) -> Tensor:
        """The values of a matrix as it runs at an option (None: the original), n x k, on the device, compute type."""
        if option is None:
            if self._stream is not None and name not in self._originals:
                return self._stream.parameter(f"{name}.weight")
            return self._originals[name]
        if name in self._dense_now and self.current[name] == option:
            return self._dense_now[name]
        return self.variants.values(name, option)

    def widened(self, name: str, option: Option | None) -> Tensor:
        """A matrix as it runs at an option, in float32, for products that are not to be rounded."""
        if option is not None:
            return self.variants.widened(name, option)
        values = self.variants.shared("original", name, "float32", lambda: self.weight(name, None).float())
        return values.to(self.device)

    def stored(self, name: str) -> Tensor:
        """The original matrix in the type it is stored in."""
        if self._stream is not None:
            return self._stream.stored(name)
        if not self._stored and self._reload is not None:
            original = self._reload()
            self._stored = {w.name: module_of(original, w).weight.data for w in self.weights}
        return self._stored[name]

    def parameters(self) -> Mapping[str, Tensor]:
        """The original's parameters by name."""
        return dict(self.model.named_parameters()) if self._stream is None else self._stream.parameters()

    def _set(self, name: str, option: Option | None) -> None:
        if option is None or self._differentiated or not self.variants.packs(name, option):
            self._modules[name].weight.data = self.weight(name, option)
            self._put(name, self._modules[name])
            return
        variant, repair = self.variants.parts(name, option)
        assert isinstance(variant, Prepacked)
        if name in self._layers:
            self._layers[name].switch(variant)
        else:
            self._layers[name] = QuantizedLinear(variant, self._modules[name].bias, self.dtype).eval()
        self._layers[name].switch(bits_of(option))
        self._layers[name].mend(repair)
        self._put(name, self._layers[name])

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)

    def _inputs(self, name: str) -> Inputs | None:
        """What the original's layer reads, where that is known."""
        if self.calibration is None:
            return None
        with self._as_original():
            return self.calibration.inputs(name)

    @contextmanager
    def _as_original(self) -> Iterator[None]:
        """While open, the model is the original, whatever it is just becoming."""
        now = {name: self.model.get_submodule(name) for name in self._originals}
        values = {name: self._modules[name].weight.data for name in self._originals}
        widths, self.current = self.current, {}
        try:
            for name, original in self._originals.items():
                self._modules[name].weight.data = original
                self._put(name, self._modules[name])
            yield
        finally:
            self.current = widths
            for name, value in values.items():
                self._modules[name].weight.data = value
                self._put(name, now[name])


def room_for_variants(device: torch.device) -> int:
    """Bytes that variants may take on a device: a share of what is free now."""
    return int(FRACTION_OF_MEMORY * memory.free(device))


def choose_type(device: torch.device) -> torch.dtype:
    """What a language model computes in: bfloat16, or float32 on a CPU without bfloat16 products."""
    fast = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def choose_device(device: str) -> torch.device:
    """The device that "auto" stands for, or the named one.

    Raises:
        BackendError: PyTorch knows no such device, or nothing can run there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"Got device={device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:0'.") from error
    if found.type == "meta":
        raise BackendError("Got device='meta', which holds no values; expected 'auto', 'cpu', 'cuda' or 'cuda:0'.")
    return found
