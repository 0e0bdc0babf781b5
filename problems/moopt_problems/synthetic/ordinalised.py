"""A continuous problem on a grid: every real variable becomes an ordinal one of evenly spaced levels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import moopt
from moopt.errors import ProblemError


class Ordinalised(moopt.Problem):
    """The same objectives and constraints over fewer candidates; variables that are discrete already stay.

    Args:
        problem: What is evaluated.
        levels: How many levels a real variable gets, its two ends among them.
    """

    def __init__(self, problem: moopt.Problem, levels: int = 11) -> None:
        if levels < 2:
            raise ProblemError(f"levels is {levels!r}; expected 2 or more.")
        self.problem, self.levels = problem, levels
        self.objectives, self.constraints, self.fidelity = problem.objectives, problem.constraints, problem.fidelity
        self.space = moopt.Space(
            {
                name: variable
                if variable.discrete
                else moopt.Ordinal(*np.linspace(variable.lower, variable.upper, levels).tolist())
                for name, variable in problem.space.items()
            }
        )

    def setup(self, resources: moopt.Resources) -> None:
        self.problem.setup(resources)

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return self.problem.known(config)

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return self.problem.evaluate(config, fidelity)

    def fingerprint(self) -> dict[str, dict[str, object]]:
        inner = self.problem.fingerprint()
        return {**inner, "identity": {**inner["identity"], "levels": self.levels}}
