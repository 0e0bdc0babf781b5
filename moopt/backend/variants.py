"""What a matrix is at each option, as it runs: made when it is first asked for, and held while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from moopt.backend.finite import all_finite
from moopt.backend.inputs import Inputs
from moopt.backend.options import Option, bits_of, named, rank_of
from moopt.backend.quantizers import Quantized, Quantizer, Repair
from moopt.backend.simulated import Simulated
from moopt.backend.variant_store import VariantStore
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError
from moopt_kernels import Prepacked, choose_layout, dequantize, layout_name, prepack, slice_repack, unprepack

Place = tuple[str, str]
"""Where the store has something of a matrix: kind and width."""


class Variants:
    """The variants of a model's matrices.

    Where kernels run they are packed codes, and a repair where there is one; elsewhere, and where they are simulated,
    dense values.

    Args:
        weights: The matrices.
        packed: Names of those that kernels may run.
        quantizer: Makes codes and repairs.
        group_size: How many inputs share a scale.
        device: Where they run.
        dtype: What is computed in.
        original: A matrix as the model's files have it, by name.
        inputs: What the original's layer reads, by name, where that is known.
        room: Bytes that may be held.
        store: Where they are kept for other processes and the next time.
        mapped: Whether what the store has takes no memory here: it runs from there.
        simulated: Options besides widths and repairs, by name.
    """

    def __init__(
        self, weights: tuple[Weight, ...], packed: list[str], quantizer: Quantizer, group_size: int,
        device: torch.device, dtype: torch.dtype, original: Callable[[str], Tensor],
        inputs: Callable[[str], Inputs | None], room: int, store: VariantStore | None, mapped: bool,
        simulated: Mapping[Option, Simulated],
    ) -> None:  # fmt: skip
        self._weights = {weight.name: weight for weight in weights}
        self._quantizer, self._group_size = quantizer, group_size
        self._device, self._dtype = device, dtype
        self._type = str(dtype).removeprefix("torch.")
        self._original, self._inputs = original, inputs
        self._store, self._mapped, self._simulated = store, mapped, simulated
        self._kind = f"{quantizer.key}-group{group_size}"
        self._layout = choose_layout(device)
        runs = self._layout != "plain" and not quantizer.simulated
        self._on_kernels = frozenset(packed if runs else ())
        self._held: OrderedDict[tuple[str, Place], Tensor | Prepacked | Repair] = OrderedDict()
        self._sizes: dict[tuple[str, Place], int] = {}
        self.room = room

    @property
    def held_bytes(self) -> int:
        """What is held takes, without what is mapped from the store."""
        return sum(self._sizes.values())

    def calibrated(self, key: str) -> None:
        """Variants are from now on of inputs with this identity."""
        self._kind = f"{self._kind}-{key}"

    def packs(self, name: str, option: Option) -> bool:
        """Whether a matrix runs from packed codes at an option."""
        return name in self._on_kernels and option not in self._simulated

    def is_stored(self, name: str, option: Option) -> bool:
        """Whether the store has a matrix at an option."""
        return all(self._has(name, place) for place in self._places(name, option))

    def parts(self, name: str, option: Option) -> tuple[Tensor | Prepacked, Repair | None]:
        """A matrix as it runs at an option: its values, or its codes where kernels read them, and their repair."""
        place, *repaired = self._places(name, option)
        if not self.packs(name, option):
            return cast(Tensor, self._keep(name, place, lambda: self._dense(name, option))), None
        codes = cast(Prepacked, self._keep(name, place, lambda: self._codes(name, self._stored_width(option))))
        return codes, self._repair(name, option) if repaired else None

    def values(self, name: str, option: Option) -> Tensor:
        """The values of a matrix as it runs at an option, n x k, on the device, compute type."""
        variant, repair = self.parts(name, option)
        if isinstance(variant, Tensor):
            return variant
        values = dequantize(_sliced(variant, bits_of(option)), self._dtype)
        return values if repair is None else repair.added(values)

    def widened(self, name: str, option: Option) -> Tensor:
        """The same in float32."""
        kind, width = self._place(option, f"{self._type}-float32")
        return self.shared(kind, name, width, lambda: self.values(name, option).float()).to(self._device)

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
        packed = _sliced(self._codes(name, self._stored_width(option)), bits_of(option))
        repair = self._repair(name, option) if rank_of(option) else None
        return Quantized(*unprepack(packed), bits_of(option), packed.shift, repair)

    def bits(self, weight: Weight, option: Option) -> int:
        """The bits of a code at an option."""
        return self._simulated[option].bits(weight) if option in self._simulated else bits_of(option)

    def bytes(self, weight: Weight, options: tuple[Option, ...]) -> int:
        """What a matrix takes in memory or in the store at some options."""
        packed = [option for option in options if self.packs(weight.name, option)]
        dense = weight.count * self._dtype.itemsize * (len(options) - len(packed))
        codes = sum(
            weight.count * bits // 8 + 3 * weight.count // self._group_size
            for bits in {self._stored_width(option) for option in packed}
        )
        repaired = {bits_of(o) for o in options if o not in self._simulated and rank_of(o)}
        return dense + codes + 2 * max(self._quantizer.ranks) * sum(weight.shape) * len(repaired)

    def shared(self, kind: str, name: str, width: str, make: Callable[[], Tensor]) -> Tensor:
        """What the store has, or what is made where there is no store."""
        return make() if self._store is None else self._store.fetch(kind, name, width, lambda: make().cpu())

    def _places(self, name: str, option: Option) -> list[Place]:
        """Where the store has the parts of a matrix at an option."""
        if not self.packs(name, option):
            return [self._place(option, self._type)]
        codes = self._place(self._stored_width(option), layout_name(self._layout))
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

    def _stored_width(self, option: Option) -> int:
        """The width of the codes that a width is read from."""
        return 8 if self._quantizer.sliced else bits_of(option)

    def _dense(self, name: str, option: Option) -> Tensor:
        """The values at an option."""

        def make() -> Tensor:
            if option in self._simulated:
                return self._simulated[option].values(self._weights[name], self._finite(name)).to(self._dtype)
            exact = self._made(name, bits_of(option)) if self._quantizer.simulated else self.quantized(name, option)
            return exact.dequantize(self._dtype)

        kind, width = self._place(option, self._type)
        return self.shared(kind, name, width, make).to(self._device)

    def _repair(self, name: str, option: Option) -> Repair:
        """The low-rank repair of a matrix at a width and a rank, bfloat16; made once for all ranks."""
        kind, width = place = self._repair_place(option)

        def make() -> dict[str, Tensor]:
            residual = self._finite(name).float() - self.quantized(name, bits_of(option)).dequantize()
            rank = min(max(self._quantizer.ranks), *residual.shape)
            return self._quantizer.repair(residual, rank, self._inputs(name))._asdict()

        def found() -> Repair:
            parts = make() if self._store is None else self._store.fetch_parts(kind, name, width, make)
            return Repair(parts["up"].to(self._device), parts["down"].to(self._device))

        return cast(Repair, self._keep(name, place, found)).of_rank(rank_of(option))

    def _codes(self, name: str, bits: int) -> Prepacked:
        """The codes at a width in the order of the kernels."""
        width = f"{bits}-{layout_name(self._layout)}"

        def make() -> dict[str, Tensor]:
            made = self._made(name, bits)
            return prepack(made.codes, made.scales, made.zeros, bits, self._group_size, self._layout).parts

        parts = make() if self._store is None else self._store.fetch_parts(self._kind, name, width, make)
        moved = {part: tensor.to(self._device) for part, tensor in parts.items()}
        codes, scales, zeros = moved["codes"], moved["scales"], moved.get("zeros")
        return Prepacked(codes, scales, zeros, bits, self._group_size, self._weights[name].shape, self._layout)

    def _made(self, name: str, bits: int) -> Quantized:
        """Codes from the weights as they are stored, and from what the original reads."""
        return self._quantizer.quantize(self._finite(name), bits, self._group_size, self._inputs(name))

    def _finite(self, name: str) -> Tensor:
        """The original as it is stored, on the device, if it can be quantized."""
        weight = self._original(name).to(self._device)
        if not all_finite(weight):
            raise QuantizationError(f"The weights of {name} are not finite; skip the layer, or mend the model's file.")
        return weight

    def _keep(
        self, name: str, place: Place, make: Callable[[], Tensor | Prepacked | Repair]
    ) -> Tensor | Prepacked | Repair:
        """What is held of a matrix, or is made now and held, in place of what was not asked for longest."""
        key = (name, place)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        found = make()
        self._held[key], self._sizes[key] = found, 0 if self._mapped and self._has(name, place) else found.nbytes
        self.room -= self._sizes[key]
        while self.room < 0 and len(self._held) > 1:
            self.room += self._sizes.pop(self._held.popitem(last=False)[0])
        return found


def _sliced(variant: Prepacked, bits: int) -> Prepacked:
    """The width that is read of what is stored."""
    return variant if variant.bits == bits else slice_repack(variant, bits)
