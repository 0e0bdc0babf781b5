"""Problems that cost nothing: pymoo's test functions, and a toy of a bit allocation. For tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.problems import get_problem

import moopt
from moopt.errors import ProblemError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FUNCTIONS = ("zdt1", "zdt2", "zdt3", "dtlz2")
"""The test functions of Zitzler, Deb and Thiele (2000) and of Deb, Thiele, Laumanns and Zitzler (2002)."""


class PymooFunction(moopt.Problem):
    """A continuous test function, as pymoo defines it: variables x0, x1, ... and objectives f0, f1, ... to minimise.

    Args:
        function: One of `FUNCTIONS`.
        variables: How many variables, d.
        objectives: How many objectives, m; the ZDT functions have two.
    """

    def __init__(self, function: str, variables: int = 30, objectives: int = 2) -> None:
        if function not in FUNCTIONS:
            raise ProblemError(f"There is no test function {function!r}; expected one of {', '.join(FUNCTIONS)}.")
        if function != "dtlz2" and objectives != 2:
            raise ProblemError(f"{function} has 2 objectives; got objectives={objectives}.")
        self.function = function
        self.pymoo = get_problem(function, n_var=variables, **({"n_obj": objectives} if function == "dtlz2" else {}))
        bounds = zip(self.pymoo.xl.tolist(), self.pymoo.xu.tolist(), strict=True)
        self.space = moopt.Space({f"x{i}": moopt.Float(low, high) for i, (low, high) in enumerate(bounds)})
        self.objectives = tuple(moopt.Objective(f"f{j}", reference=1.1) for j in range(objectives))

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        found = self.pymoo.evaluate(self.space.encode(config))
        return moopt.Evaluation({f"f{j}": float(value) for j, value in enumerate(found)})

    def fingerprint(self) -> dict[str, dict[str, object]]:
        return {"identity": {"problem": self.function}, "environment": {}}


class BitToy(moopt.Problem):
    """An additive bit allocation: every layer has a size and a sensitivity, and the size is known.

    Layer i at b bits loses sensitivity_i * 4**-b, the error of uniform quantization; with `interaction` the loss also
    has a term of neighbouring layers, which no additive model sees.

    Args:
        layers: How many layers, each a decision.
        bits: The widths to choose from.
        interaction: The weight of the products of neighbouring layers' losses.
        seed: Which layers: sizes and sensitivities are drawn from it.
    """

    objectives = (moopt.Objective("loss"), moopt.Objective("size", unit="kB", known=True))

    def __init__(
        self, layers: int = 20, bits: tuple[int, ...] = (2, 3, 4, 6, 8), interaction: float = 0.0, seed: int = 0
    ) -> None:
        rng = np.random.default_rng([seed, layers])
        self.bits, self.interaction, self.seed = bits, interaction, seed
        self.sizes: IntArray = rng.integers(1, 9, size=layers) * 8
        self.scales: FloatArray = rng.lognormal(0.0, 1.5, size=layers) / layers
        self.space = moopt.Space({f"layer{i}": moopt.Ordinal(*bits) for i in range(layers)})
        self._table = self.scales[:, None] * 4.0 ** -np.array(bits, dtype=float)
        self._costs = self.sizes[:, None] * np.array(bits, dtype=np.int64)

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {"size": float(self._picked(self._costs, config).sum()) / 8}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({"loss": self._loss(self._picked(self._table, config))})

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"{b} bits": dict.fromkeys(self.space.names, b) for b in self.bits}

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
        slopes = (self._table - losses[:, None]) * (1 + self.interaction * beside[:, None])
        return {"loss": self._loss(losses)}, slopes, np.zeros_like(slopes)

    def moves(self, config: moopt.Config, rng: np.random.Generator) -> moopt.Config:
        """A level switch: one layer one level up, another one down."""
        codes = self.space.encode(config)
        up, down = np.flatnonzero(codes < self.space.upper), np.flatnonzero(codes > 0)
        for candidates, step in ((up, 1.0), (down, -1.0)):
            if len(candidates):
                codes[rng.choice(candidates)] += step
        return self.space.decode(codes)

    def fingerprint(self) -> dict[str, dict[str, object]]:
        identity = {"problem": "bit toy", "interaction": self.interaction, "seed": self.seed}
        return {"identity": identity, "environment": {}}

    def _loss(self, losses: FloatArray) -> float:
        return float(losses.sum() + self.interaction * (losses[1:] * losses[:-1]).sum())

    def _picked(self, table: npt.NDArray[Any], config: moopt.Config) -> npt.NDArray[Any]:
        picked: npt.NDArray[Any] = table[np.arange(len(table)), self.space.encode(config).astype(int)]
        return picked
