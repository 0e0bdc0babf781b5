"""A merge in a few numbers: mixtures of vectors, group by group, with exact losses and slopes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

import moopt

FloatArray = npt.NDArray[np.float64]


class Mixing(moopt.Problem):
    """Squared distances of a mixture from targets; weights on a simplex for every group."""

    def __init__(self, models: int = 4, groups: int = 3, tasks: int = 2, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vectors = rng.normal(size=(groups, models, 5))
        weights = rng.dirichlet(np.ones(models), size=(tasks, groups))
        self.targets = np.einsum("tgm,gmk->tgk", weights, self.vectors)
        names = [f"m{i}" for i in range(models)]
        self.space = moopt.Space({f"g{i}": moopt.Simplex(*names) for i in range(groups)})
        self.objectives = [moopt.Objective(f"loss-{i}") for i in range(tasks)]
        self.gradient_tokens = 10

    def mixture(self, config: moopt.Config) -> FloatArray:
        return np.array([list(s.weights(name, config).values()) for name, s in self.space.simplexes.items()])

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        theta = np.einsum("gm,gmk->gk", self.mixture(config), self.vectors)
        losses = ((theta - self.targets) ** 2).sum(axis=(1, 2))
        return moopt.Evaluation({f"loss-{i}": float(loss) for i, loss in enumerate(losses)})

    def gradient(
        self, config: moopt.Config, fidelity: moopt.Fidelity
    ) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        theta = np.einsum("gm,gmk->gk", self.mixture(config), self.vectors)
        slope = 2 * (theta - self.targets).mean(axis=0)
        linear = np.einsum("gk,gmk->gm", slope, self.vectors - theta[:, None])
        loss = float(((theta - self.targets) ** 2).sum(axis=(1, 2)).mean())
        return {"loss": loss}, linear, np.zeros_like(linear)

    def baselines(self) -> dict[str, moopt.Config]:
        found = {}
        for one in next(iter(self.space.simplexes.values())).parts:
            weights = {m: float(m == one) for m in next(iter(self.space.simplexes.values())).parts}
            configs = [s.config(name, weights) for name, s in self.space.simplexes.items()]
            found[f"only {one}"] = {k: v for each in configs for k, v in each.items()}
        return found
