"""A toy of a bit allocation: additive, or with neighbouring layers that interact; its front is known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import moopt
from moopt import pareto
from moopt.errors import ProblemError
from moopt_problems.synthetic.level_switch import level_switch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class BitToy(moopt.Problem):
    """Every layer has a size and a sensitivity, and the size is known.

    Layer i at b bits loses sensitivity_i * 4**-b, the error of uniform quantization. With `interaction` w the loss also
    has w times the products of neighbouring layers' losses, over the mean loss of a layer at the least width: such a
    term is about w times the additive loss when every layer has the least width, and falls 4 times faster with every
    bit, as real models' do.

    Args:
        layers: How many layers, each a decision.
        bits: The widths to choose from.
        interaction: The weight w of what no additive model sees.
        seed: Which layers: sizes and sensitivities are drawn from it.
        scale: "linear": the objective is `loss`. "log": it is its natural logarithm, `log_loss`, so that a hypervolume
            weighs all sizes alike, and not just the smallest, where nearly all of the loss is; the reference point is
            then declared: the loss at the least widths, the size at the largest.
        sensitivities: True: the table and the gradient cost nothing. "counted": there is only the table, for as
            many evaluations as there are layers, since one probe of a layer gives its sensitivity. False: neither.
        uniform: Whether the uniform allocations are given as baselines.
    """

    objectives = (moopt.Objective("loss"), moopt.Objective("size", unit="kB", known=True))

    def __init__(
        self, layers: int = 20, bits: tuple[int, ...] = (2, 3, 4, 6, 8), interaction: float = 0.0, seed: int = 0,
        scale: Literal["linear", "log"] = "linear", sensitivities: bool | Literal["counted"] = True,
        uniform: bool = True,
    ) -> None:  # fmt: skip
        if scale not in ("linear", "log") or sensitivities not in (True, False, "counted"):
            raise ProblemError(
                f"Got scale={scale!r} and sensitivities={sensitivities!r}; expected 'linear' or 'log', "
                "and True, False or 'counted'."
            )
        rng = np.random.default_rng([seed, layers])
        self.bits, self.interaction, self.seed = bits, interaction, seed
        self.scale, self.told, self.uniform = scale, sensitivities, uniform
        self.sizes: IntArray = rng.integers(1, 9, size=layers) * 8
        self.scales: FloatArray = rng.lognormal(0.0, 1.5, size=layers) / layers
        self.space = moopt.Space({f"layer{i}": moopt.Ordinal(*bits) for i in range(layers)})
        self._table = self.scales[:, None] * 4.0 ** -np.array(bits, dtype=float)
        self._costs = self.sizes[:, None] * np.array(bits, dtype=np.int64)
        self._weight = interaction / float(self._table[:, int(np.argmin(bits))].mean())
        if scale == "log":
            worst, largest = float(self._total(self._table.max(axis=1))), float(self._costs.max(axis=1).sum()) / 8
            self.objectives = (
                moopt.Objective("log_loss", reference=worst),
                moopt.Objective("size", unit="kB", known=True, reference=largest),
            )
        if sensitivities is not True:
            self.gradient = None  # type: ignore[assignment, method-assign]
        if sensitivities == "counted":
            self.fidelity, self.sensitivity = moopt.Fidelity(1), moopt.Fidelity(layers, "probes")
        elif not sensitivities:
            self.sensitivities = None  # type: ignore[assignment, method-assign]

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {"size": float(self._picked(self._costs, config).sum()) / 8}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        loss = self._total(self._picked(self._table, config))
        return moopt.Evaluation({self.objectives[0].name: float(loss)})

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"{b} bits": dict.fromkeys(self.space.names, b) for b in self.bits if self.uniform}

    def costs(self) -> IntArray:
        """The bits of each layer at each width, in thousands, [layers, widths]."""
        return self._costs

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The loss of each layer at each width, [layers, widths]: exact without interaction."""
        return self._table

    def gradient(
        self, config: moopt.Config, fidelity: moopt.Fidelity
    ) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """The loss, and what changing one layer adds to it, [layers, widths]: exact, without curvature."""
        losses = self._picked(self._table, config)
        beside = np.append(losses[1:], 0.0) + np.insert(losses[:-1], 0, 0.0)
        slopes = (self._table - losses[:, None]) * (1 + self._weight * beside[:, None])
        return {self.objectives[0].name: float(self._total(losses))}, slopes, np.zeros_like(slopes)

    def moves(self, config: moopt.Config, rng: np.random.Generator) -> moopt.Config:
        """A level switch: one layer one level up, another one down."""
        return level_switch(self.space, config, rng)

    def front(self) -> FloatArray:
        """The whole Pareto front, [n, 2], exact: the least loss at every size, by dynamic programming.

        Interactions are between neighbours alone, so the width of the last layer is all that has to be remembered.
        """
        units = self._costs // 8
        sizes = np.arange(int(units.max(axis=1).sum()) + 1)
        least = np.full((units.shape[1], len(sizes)), np.inf)
        least[np.arange(len(least)), units[0]] = self._table[0]
        for i in range(1, len(units)):
            beside = self._weight * np.outer(self._table[i - 1], self._table[i])
            following = np.full_like(least, np.inf)
            for j, cost in enumerate(units[i]):
                best = (least + beside[:, j, None]).min(axis=0) + self._table[i, j]
                following[j, cost:] = best[: len(sizes) - cost]
            least = following
        lowest = least.min(axis=0)
        possible = np.isfinite(lowest)
        values = np.column_stack([self._scaled(lowest[possible]), sizes[possible].astype(float)])
        return values[pareto.nondominated(values)]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "layers": len(self.space), "bits": self.bits, "interaction": self.interaction, "seed": self.seed,
            "scale": self.scale, "sensitivities": self.told, "uniform": self.uniform,
        }  # fmt: skip

    def fingerprint(self) -> dict[str, dict[str, object]]:
        identity = {"problem": "bit toy", "interaction": self.interaction, "seed": self.seed}
        return {"identity": identity, "environment": {}}

    def _total(self, losses: FloatArray) -> Any:
        """The objective, given the loss of each layer, [layers]."""
        return self._scaled(losses.sum() + self._weight * (losses[1:] * losses[:-1]).sum())

    def _scaled(self, loss: Any) -> Any:
        return np.log(loss) if self.scale == "log" else loss

    def _picked(self, table: npt.NDArray[Any], config: moopt.Config) -> npt.NDArray[Any]:
        picked: npt.NDArray[Any] = table[np.arange(len(table)), self.space.encode(config).astype(int)]
        return picked
