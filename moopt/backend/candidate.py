"""One loaded model that becomes any candidate: widths are switched by swapping matrices, never by loading again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from moopt.backend import memory
from moopt.backend.calibration import Calibration
from moopt.backend.inputs import Inputs
from moopt.backend.options import Option, Options, bits_of, named, rank_of
from moopt.backend.quantized_linear import QuantizedLinear
from moopt.backend.quantizers import Quantized, Quantizer, Repair
from moopt.backend.simulated import Simulated
from moopt.backend.steps import steps
from moopt.backend.streaming import Streamed
from moopt.backend.variants import VariantStore
from moopt.backend.weights import Weight, module_of
from moopt.errors import QuantizationError
from moopt_kernels import Prepacked, choose_layout, dequantize, layout_name, prepack, slice_repack, unprepack

FRACTION_OF_MEMORY = 0.35
"""The share of free memory that variants may keep; the rest is quantized again when needed."""

Place = tuple[str, str]
"""Where the store has something of a matrix: kind and width."""


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
        self._store, self._kind = store, f"{quantizer.key}-group{group_size}"
        self.calibration: Calibration | None = None
        self._reload, self._simulated = reload, simulated or {}
        originals = dict(model.named_parameters()) if stream is None else stream.parameters()
        for how in self._simulated.values():
            how.check(originals)
        self.weights, self._quantizer, self._group_size = weights, quantizer, group_size
        self._stream = stream
        held = [w for w in weights if stream is None or stream.stage(w.name) is None]
        self._stored: dict[str, Tensor] = {w.name: module_of(model, w).weight.data for w in held}
        self.model = model.to(device=device, dtype=dtype)
        self.device, self.dtype = device, dtype
        self._type = str(dtype).removeprefix("torch.")
        self._modules = {w.name: module_of(self.model, w) for w in weights}
        self._shapes = {w.name: w.shape for w in weights}
        if self.device.type == "cpu" and stream is None:
            for name, module in self._modules.items():
                module.weight.data = self._shared("original", name, self._type, partial(getattr, module.weight, "data"))
        self._originals: dict[str, Tensor] = {w.name: self._modules[w.name].weight.data for w in held}
        self.layout = choose_layout(device)
        linears = [w.name for w in weights if w.kind == "linear" and type(self._modules[w.name]) is nn.Linear]
        runs = self.layout != "plain" and not quantizer.simulated
        self._on_kernels = frozenset(linears if runs else ())
        self._layers: dict[str, QuantizedLinear] = {}
        self._dense_now: dict[str, Tensor] = {}
        self._held: OrderedDict[tuple[str, Place], Tensor | Prepacked | Repair] = OrderedDict()
        self._sizes: dict[tuple[str, Place], int] = {}
        self._room = room_for_variants(device) if stream is None or device.type == "cuda" else stream.block_bytes
        self._differentiated = False
        self.current: dict[str, Option] = {}

    @property
    def streams(self) -> bool:
        """Whether the model is not held whole."""
        return self._stream is not None

    def calibrate(self, calibration: Calibration) -> None:
        """Quantize from now on by what the original's layers read on a text. Nothing is run before it is needed."""
        self.calibration = calibration
        self._kind = f"{self._kind}-{calibration.key}"

    def use(self, widths: Options) -> None:
        """Become the candidate with these options; weights that are not named become the original's."""
        changed = [name for name in self._originals if self.current.get(name) != widths.get(name)]
        for name in steps(changed, "Quantizing"):
            self._set(name, widths.get(name))
        self.current = dict(widths)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """While open, the candidate runs from dense weights of the same values, which gradients pass through."""
        packed = [n for n, option in self.current.items() if self._packs(n, option) and n in self._originals]
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
            self._parts(name, option)  # may have to run the original's block, so before it is another's
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
                if (not self._is_stored(name, option)) if self.streams else (self._room > 0):
                    self._parts(name, option)
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
        variant, repair = self._parts(name, option)
        if isinstance(variant, Tensor):
            return variant
        values = dequantize(_sliced(variant, bits_of(option)), self.dtype)
        return values if repair is None else repair.added(values)

    def widened(self, name: str, option: Option | None) -> Tensor:
        """A matrix as it runs at an option, in float32, for products that are not to be rounded."""
        kind, width = ("original", "float32") if option is None else self._place(option, f"{self._type}-float32")
        return self._shared(kind, name, width, lambda: self.weight(name, option).float()).to(self.device)

    def quantized(self, name: str, option: Option) -> Quantized:
        """The codes, scales and zero points of a matrix at a width, with its repair.

        Raises:
            QuantizationError: no kernel runs the quantizer's codes.
        """
        if self._quantizer.simulated:
            raise QuantizationError(
                f"No kernel runs the codes of {self._quantizer.name!r}: its candidates are measured from their values, "
                "but not saved or timed. Take gptq at the same size for that."
            )
        packed = _sliced(self._packed(name, self._stored_width(option)), bits_of(option))
        repair = self._repair(name, option) if rank_of(option) else None
        return Quantized(*unprepack(packed), bits_of(option), packed.shift, repair)

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

    def bits(self, weight: Weight, option: Option) -> int:
        """The bits of a code at an option."""
        return self._simulated[option].bits(weight) if option in self._simulated else bits_of(option)

    def variant_bytes(self, weight: Weight, options: tuple[Option, ...]) -> int:
        """What a matrix takes in memory or in the store at some options."""
        packed = [option for option in options if self._packs(weight.name, option)]
        dense = weight.count * self.dtype.itemsize * (len(options) - len(packed))
        codes = sum(
            weight.count * bits // 8 + 3 * weight.count // self._group_size
            for bits in {self._stored_width(option) for option in packed}
        )
        repaired = {bits_of(o) for o in options if o not in self._simulated and rank_of(o)}
        return dense + codes + 2 * max(self._quantizer.ranks) * sum(weight.shape) * len(repaired)

    def _packs(self, name: str, option: Option) -> bool:
        """Whether a matrix runs from packed codes at an option."""
        return name in self._on_kernels and option not in self._simulated

    def _set(self, name: str, option: Option | None) -> None:
        if option is None or self._differentiated or not self._packs(name, option):
            self._modules[name].weight.data = self.weight(name, option)
            self._put(name, self._modules[name])
            return
        variant, repair = self._parts(name, option)
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

    def _parts(self, name: str, option: Option) -> tuple[Tensor | Prepacked, Repair | None]:
        """A matrix as it is held at an option: its values, or its codes where kernels read them, and their repair."""
        place, *repaired = self._places(name, option)
        if not self._packs(name, option):
            return cast(Tensor, self._keep(name, place, lambda: self._dense(name, option))), None
        codes = cast(Prepacked, self._keep(name, place, lambda: self._packed(name, self._stored_width(option))))
        return codes, self._repair(name, option) if repaired else None

    def _places(self, name: str, option: Option) -> list[Place]:
        """Where the store has the parts of a matrix at an option."""
        if not self._packs(name, option):
            return [self._place(option, self._type)]
        codes = self._place(self._stored_width(option), layout_name(self.layout))
        return [codes, self._repair_place(option)] if rank_of(option) else [codes]

    def _place(self, option: Option, form: str) -> Place:
        """Where the store has an option in a type or layout."""
        if option in self._simulated:
            return self._simulated[option].key, form
        made = f"{option}-{self._quantizer.name}-{self._quantizer.version}" if rank_of(option) else option
        return self._kind, f"{made}-{form}"

    def _repair_place(self, option: Option) -> Place:
        return self._place(named(bits_of(option), max(self._quantizer.ranks)), "repair")

    def _has(self, name: str, place: Place) -> bool:
        return self._store is not None and self._store.has(place[0], name, place[1])

    def _is_stored(self, name: str, option: Option) -> bool:
        return all(self._has(name, place) for place in self._places(name, option))

    def _stored_width(self, option: Option) -> int:
        """The width of the codes that a width is read from."""
        return 8 if self._quantizer.sliced else bits_of(option)

    def _dense(self, name: str, option: Option) -> Tensor:
        """The values at an option."""

        def make() -> Tensor:
            if option in self._simulated:
                weight = next(w for w in self.weights if w.name == name)
                return self._simulated[option].values(weight, self._finite(name)).to(self.dtype)
            exact = self._made(name, bits_of(option)) if self._quantizer.simulated else self.quantized(name, option)
            return exact.dequantize(self.dtype)

        kind, width = self._place(option, self._type)
        return self._shared(kind, name, width, make).to(self.device)

    def _repair(self, name: str, option: Option) -> Repair:
        """The low-rank repair of a matrix at a width and a rank, bfloat16; made once for all ranks."""
        kind, width = place = self._repair_place(option)

        def make() -> dict[str, Tensor]:
            residual = self._finite(name).float() - self.quantized(name, bits_of(option)).dequantize()
            rank = min(max(self._quantizer.ranks), *residual.shape)
            return self._quantizer.repair(residual, rank, self._inputs(name))._asdict()

        def found() -> Repair:
            parts = make() if self._store is None else self._store.fetch_parts(kind, name, width, make)
            return Repair(parts["up"].to(self.device), parts["down"].to(self.device))

        return cast(Repair, self._keep(name, place, found)).of_rank(rank_of(option))

    def _packed(self, name: str, bits: int) -> Prepacked:
        """The codes at a width in the order of the kernels."""
        width = f"{bits}-{layout_name(self.layout)}"

        def make() -> dict[str, Tensor]:
            made = self._made(name, bits)
            return prepack(made.codes, made.scales, made.zeros, bits, self._group_size, self.layout).parts

        parts = make() if self._store is None else self._store.fetch_parts(self._kind, name, width, make)
        moved = {part: tensor.to(self.device) for part, tensor in parts.items()}
        shape = self._shapes[name]
        codes, scales, zeros = moved["codes"], moved["scales"], moved.get("zeros")
        return Prepacked(codes, scales, zeros, bits, self._group_size, shape, self.layout)

    def _made(self, name: str, bits: int) -> Quantized:
        """Codes from the weights as they are stored, and from what the original reads."""
        return self._quantizer.quantize(self._finite(name), bits, self._group_size, self._inputs(name))

    def _inputs(self, name: str) -> Inputs | None:
        """What the original's layer reads, where that is known."""
        if self.calibration is None:
            return None
        with self._as_original():
            return self.calibration.inputs(name)

    def _finite(self, name: str) -> Tensor:
        """The original as it is stored, on the device, if it can be quantized."""
        weight = self.stored(name).to(self.device)
        if not weight.isfinite().all():
            raise QuantizationError(f"The weights of {name} are not finite; skip the layer, or mend the model's file.")
        return weight

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

    def _shared(self, kind: str, name: str, width: str, make: Callable[[], Tensor]) -> Tensor:
        """What the store has, or what is made where there is no store."""
        return make() if self._store is None else self._store.fetch(kind, name, width, lambda: make().cpu())

    def _keep(
        self, name: str, place: Place, make: Callable[[], Tensor | Prepacked | Repair]
    ) -> Tensor | Prepacked | Repair:
        """What is held of a matrix, or is made now and held, in place of what was not asked for longest."""
        key = (name, place)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        found = make()
        mapped = self.device.type == "cpu" and not self.streams and self._has(name, place)
        self._held[key], self._sizes[key] = found, 0 if mapped else found.nbytes
        self._room -= self._sizes[key]
        while self._room < 0 and len(self._held) > 1:
            self._room += self._sizes.pop(self._held.popitem(last=False)[0])
        return found


def _sliced(variant: Prepacked, bits: int) -> Prepacked:
    """The width that is read of what is stored."""
    return variant if variant.bits == bits else slice_repack(variant, bits)


def room_for_variants(device: torch.device) -> int:
    """Bytes that variants may take on a device: a share of what is free now."""
    return int(FRACTION_OF_MEMORY * memory.free(device))


def choose_device(device: str) -> torch.device:
    """The device that "auto" stands for, or the named one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
