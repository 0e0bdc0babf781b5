"""MatGPTQ: one 8-bit parent for all widths, its codes chosen so that their upper bits are good codes, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer
from moopt.backend.quantizers.gptq import Uniform, affine
from moopt.errors import QuantizationError
from moopt_kernels import sliced_codes

MIDDLE = 128.0
"""Places are counted from here, to lose no digits."""


@dataclass(frozen=True)
class MatGPTQ(Quantizer):
    """One 8-bit parent; a width r is read from the upper r bits of its codes, rounded, with the same scales and zeros.

    A code is the one of all 256 with the least sum over the widths of weight * squared error of its slice. As published
    the other inputs make up for the mean of the slices' errors, in one matrix; here each width has a matrix of its own,
    in which its own errors are made up for, and a slice comes close to what `GPTQ` makes at its width alone. Without
    inputs there is nothing to make up for, and nothing to win at a lower width: the codes are the best of 8 bits.

    Args:
        widths: What the codes are chosen for; all other widths can be read as well.
        weights: What each of these widths counts.
        damping: See `GPTQ`.
        act_order: See `GPTQ`.

    Raises:
        QuantizationError: widths and weights do not fit each other.
    """

    name: ClassVar[str] = "matgptq"
    calibrated: ClassVar[bool] = True
    sliced: ClassVar[bool] = True

    widths: tuple[int, ...] = (3, 4, 8)
    weights: tuple[float, ...] = (1.0, 1.0, 10.0)
    damping: float = 0.01
    act_order: bool = True

    def __post_init__(self) -> None:
        fits = all(isinstance(r, int) and 1 <= r <= 8 for r in self.widths) and all(w > 0 for w in self.weights)
        if not self.widths or not len(set(self.widths)) == len(self.widths) == len(self.weights) or not fits:
            raise QuantizationError(
                f"Got widths={self.widths} and weights={self.weights}; expected widths of 1 to 8 bits, each once, "
                "and a weight above 0 for each."
            )

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        levels = Uniform(255) if inputs is None else Nested(self.widths, self.weights, weight.device)
        parts = affine(weight, group_size, levels, inputs, self.damping, self.act_order)
        return Quantized(*parts, 8).sliced(bits)


class Nested:
    """The levels of a parent: a code stands for one place a width.

    The errors of a code add up to sum w (u - p)^2 over the widths, u the place wanted and p the one it has; what
    depends on the code is sum w p^2 - 2 w u p, one product for all 256 codes.
    """

    highest = 255
    tops: tuple[int, ...] = (255, 239, 223)
    """Room above the range: the highest slice of r bits stands for 256 - 2**(8 - r), as there is no overflow code."""

    def __init__(self, widths: tuple[int, ...], weights: tuple[float, ...], device: torch.device) -> None:
        self.reads = len(widths)
        codes = torch.arange(256, dtype=torch.uint8)[None]
        places = torch.cat([sliced_codes(codes, r).float() * 2 ** (8 - r) for r in widths])
        self._places = places.to(device)
        self._weights = torch.tensor(weights, device=device)[:, None]
        self._steps = torch.tensor([2.0 ** (8 - r) for r in widths], device=device)[:, None]
        centred = self._places - MIDDLE
        self._slopes = -2 * self._weights * centred
        self._offsets = (self._weights * centred.square()).sum(0)

    def nearest(self, places: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.addmm(self._offsets, (places - MIDDLE).T, self._slopes).argmin(1)
        return codes, self._places[:, codes]

    def loss(self, places: Tensor) -> Tensor:
        rounded = (places / self._steps).round_().clamp_(min=0).mul_(self._steps)
        rounded = torch.minimum(rounded, 256 - self._steps)
        return rounded.sub_(places).square_().mul_(self._weights)
