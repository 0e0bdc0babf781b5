"""What a linear layer reads on calibration text: the second moment of its inputs, and the factor that GPTQ needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

logger = logging.getLogger("moopt")

RETRIES = 4
"""How often damping is multiplied by ten for a second moment that cannot be inverted."""


@dataclass(frozen=True)
class Inputs:
    """The inputs x of some linear layers, over the tokens of a calibration text.

    Attributes:
        name: Of the layers that read them.
        moment: The mean of x x', k x k, float32.
        tokens: How many there were.
    """

    name: str
    moment: Tensor
    tokens: int
    _factors: dict[tuple[float, bytes], Tensor | None] = field(default_factory=dict, repr=False, compare=False)

    def factor(self, damping: float, order: Tensor) -> Tensor | None:
        """U, upper triangular, with U'U the inverse of the damped moment; kept for all who read the same inputs.

        Inputs that are always zero get a one on the diagonal, which leaves them out of everything.

        Args:
            damping: Share of the mean diagonal that is added to it; ten times more after each failure.
            order: The order of the inputs, k.

        Returns:
            k x k, float32; None if no damping helped, which is said.
        """
        key = (damping, order.cpu().numpy().tobytes())
        if key not in self._factors:
            self._factors[key] = self._found(damping, order)
        return self._factors[key]

    def _found(self, damping: float, order: Tensor) -> Tensor | None:
        moment = self.moment[order][:, order].double()
        diagonal = moment.diagonal()
        mean = float(diagonal.mean())
        diagonal[diagonal == 0] = mean or 1.0
        for attempt in range(RETRIES + 1):
            share = damping * 10**attempt
            damped = moment.clone()
            damped.diagonal().add_(share * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and upper.isfinite().all():
                if attempt:
                    logger.info("The inputs of %s needed a damping of %g, not %g.", self.name, share, damping)
                inverse: Tensor = upper.float()
                return inverse
        logger.warning("The inputs of %s cannot be inverted; it is rounded to nearest.", self.name)
        return None
