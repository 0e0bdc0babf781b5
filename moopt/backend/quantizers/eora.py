"""EoRA (Liu et al. 2024): a low-rank repair beside another quantizer's codes, its rank for the search to choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from moopt.backend.inputs import Inputs
from moopt.backend.quantizers.contract import Quantized, Quantizer, Repair
from moopt.backend.quantizers.gptq import GPTQ
from moopt.errors import QuantizationError


@dataclass(frozen=True)
class EoRA(Quantizer):
    """Another quantizer's codes, and beside them the best low-rank repair of each linear layer, in bfloat16.

    Every width may have every rank, so that bytes of repairs compete with bytes of codes: a width with a repair is
    named "3+r32". The repairs of lower ranks are the first columns of those of higher ones.

    Args:
        base: Makes the codes. One with zero points, whose codes kernels run at their own width: rtn, hqq or gptq.
        ranks: To choose from; 0 is no repair.

    Raises:
        QuantizationError: the base or the ranks are no such ones.
    """

    name: ClassVar[str] = "eora"
    calibrated: ClassVar[bool] = True

    base: Quantizer = field(default_factory=GPTQ)
    ranks: tuple[int, ...] = (0, 32)

    def __post_init__(self) -> None:
        base = self.base
        if not isinstance(base, Quantizer) or base.sliced or base.symmetric or base.simulated or base.ranks != (0,):
            raise QuantizationError(f"Got base={base!r}; expected an RTN, HQQ or GPTQ, or a quantizer of your own.")
        listed = isinstance(self.ranks, (list, tuple)) and len(self.ranks) > 0
        if not listed or any(type(rank) is not int or rank < 0 for rank in self.ranks):
            raise QuantizationError(f"Got ranks={self.ranks!r}; expected whole numbers from 0, such as (0, 16, 32).")

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        return self.base.quantize(weight, bits, group_size, inputs if self.base.calibrated else None)

    def repair(self, residual: Tensor, rank: int, inputs: Inputs | None = None) -> Repair:
        found = closed_form(residual, rank, None if inputs is None else inputs.moment)
        return Repair(found.up.bfloat16(), found.down.bfloat16())

    def settings(self) -> dict[str, Any]:
        return {"base": self.base.key, "ranks": list(self.ranks)}

    @property
    def key(self) -> str:
        """The base's: its codes are the same, whatever repairs stand beside them."""
        return self.base.key


def closed_form(residual: Tensor, rank: int, moment: Tensor | None = None) -> Repair:
    """The repair of a rank that minimises the output's error, trace((E - up down) M (E - up down)').

    With M = Q L Q' and E Q L^1/2 = U S V', EoRA's minimiser is U_r S_r V_r' L^-1/2 Q', which is U_r U_r' E: so that
    nothing is inverted, and a second moment may be singular. U_r are the top eigenvectors of E M E'.

    Args:
        residual: E, n x k: what a repair should add.
        rank: Up to min(n, k).
        moment: M, k x k; None for the identity.

    Returns:
        In float64.
    """
    basis, core = torch.linalg.qr(residual.double())  # the eigenvectors lie in E's columns: min(n, k) of them
    weighed = core if moment is None else core @ moment.to(core)
    _, vectors = torch.linalg.eigh(weighed @ core.T)
    top = vectors[:, -rank:].flip(1)
    return Repair(basis @ top, top.T @ core)
