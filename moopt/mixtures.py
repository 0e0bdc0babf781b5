"""MC-MoE's programme (Huang et al. 2024): a width for each expert of a block, by its use and what low widths do to it.

Numbers only; `moopt.backend.routing` measures what goes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moopt.errors import BudgetError
from moopt.programmes import Programme

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WIDTHS = (1, 2, 3)
"""What MC-MoE chooses from."""


def expert_losses(
    activations: npt.ArrayLike, weights: npt.ArrayLike, errors: npt.ArrayLike,
    alpha: float = 1.0, beta: float = 1.5, gamma: float = 2.0,
) -> FloatArray:  # fmt: skip
    """What each expert is taken to lose at each width, phi^alpha * w^beta * eps^gamma, [experts, widths].

    (The code that was published with the paper raises eps to alpha, and uses gamma nowhere.)

    Args:
        activations: How often each expert is chosen, [experts]; phi is its share.
        weights: The sum, or mean, of its routing weights before the chosen ones are normalised, [experts]; w is its
            share.
        errors: The Frobenius norm of what the block's output is off by with that expert alone at that width, eps,
            [experts, widths].
        alpha: How much the activations count.
        beta: How much the weights count.
        gamma: How much the errors count.

    Raises:
        BudgetError: shapes that do not fit together, or numbers that are negative or not finite.
    """
    use, weight, error = (np.asarray(values, dtype=float) for values in (activations, weights, errors))
    if use.ndim != 1 or weight.shape != use.shape or error.ndim != 2 or len(error) != len(use):
        raise BudgetError(
            f"Got activations of shape {use.shape}, weights of {weight.shape} and errors of {error.shape}; expected "
            "[experts], [experts] and [experts, widths]."
        )
    for name, values in (("activations", use), ("weights", weight), ("errors", error)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise BudgetError(f"The {name} have numbers in them that are negative or not finite; expected from 0 on.")
    share, routed = (values / (values.sum() or 1.0) for values in (use, weight))
    losses: FloatArray = (share**alpha * routed**beta)[:, None] * error**gamma
    return losses


def expert_widths(losses: npt.ArrayLike, budget: int, widths: Sequence[int] = WIDTHS) -> IntArray:
    """The width of each expert, [experts], that loses least in sum, the widths in sum within a budget.

    At least one expert gets the largest width and at least one the second largest.

    Args:
        losses: What each expert loses at each width, [experts, widths].
        budget: What the widths may add up to: 20 for 8 experts at 2.5 bits.
        widths: What to choose from, in the order of the columns.

    Raises:
        BudgetError: widths that do not fit the table, fewer than two widths or experts, or a budget that is too small.
    """
    table, bits = np.asarray(losses, dtype=float), np.asarray(widths, dtype=np.int64)
    if table.ndim != 2 or table.shape[1] != len(bits) or len(set(widths)) != len(bits) or min(*table.shape, 2) < 2:
        raise BudgetError(
            f"Got losses of shape {table.shape} for the widths {tuple(widths)}; expected [experts, widths], two or "
            "more of both, every width once."
        )
    second, first = np.sort(bits)[-2:]
    least = int(bits.min() * (len(table) - 2) + second + first)
    if budget < least:
        raise BudgetError(
            f"Got a budget of {budget} bits for {len(table)} experts; expected {least} or more: one at {first}, one at "
            f"{second}, the others at {bits.min()}."
        )
    costs = np.broadcast_to(bits, table.shape)
    elsewhere = {f"not at {width} bits": (costs != width).astype(np.int64) for width in (first, second)}
    programme = Programme(table, {"bits": costs, **elsewhere})
    return bits[programme.at({"bits": budget, **dict.fromkeys(elsewhere, len(table) - 1)})]
