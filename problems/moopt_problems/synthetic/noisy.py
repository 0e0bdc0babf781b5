"""Any problem with noise on what it measures: the same noise for the same candidate, and the truth to score by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

import moopt
from moopt.errors import ProblemError

SAMPLE = 256
"""Candidates that the ranges are estimated from."""

KEPT = ("moves", "repair", "costs", "features", "front", "maximum_hypervolume")
"""Optional methods that tell a search nothing of a candidate's true values."""


class Noisy(moopt.Problem):
    """A problem whose measured objectives have normal errors; known ones and constraints stay exact.

    The error is a function of the seed, the candidate and the fidelity, so that runs repeat. What would give the truth
    away (sensitivities, gradients) is hidden.

    Args:
        problem: What is measured.
        share: The standard deviation, as a share of each objective's range.
        given: Whether an evaluation tells its variances.
        ranges: The range of each measured objective by name; None estimates them from `SAMPLE` random candidates.
        seed: Which noise.
    """

    def __init__(
        self, problem: moopt.Problem, share: float = 0.1, given: bool = True,
        ranges: Mapping[str, float] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if not share > 0:
            raise ProblemError(f"share is {share!r}; expected a number above 0, such as 0.1.")
        self.problem, self.share, self.given, self.seed = problem, share, given, seed
        self._stated = ranges
        self.space, self.objectives, self.constraints = problem.space, problem.objectives, problem.constraints
        self.fidelity = problem.fidelity
        for name in KEPT:
            if callable(method := getattr(problem, name, None)):
                setattr(self, name, method)

    def setup(self, resources: moopt.Resources) -> None:
        self.problem.setup(resources)

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        found = self.truth(config, fidelity)
        text = repr((self.seed, self.space.key(config), fidelity))
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))
        errors = {name: deviation * rng.standard_normal() for name, deviation in self.deviations.items()}
        values = {name: value + errors.get(name, 0.0) for name, value in found.values.items()}
        variances = {name: deviation**2 for name, deviation in self.deviations.items()}
        return moopt.Evaluation(values, variances if self.given else None)

    def truth(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        """What a candidate is without noise, for scoring a search."""
        return self.problem.evaluate(config, fidelity)

    def reseeded(self, seed: int) -> Noisy:
        """The same problem with other noise."""
        return Noisy(self.problem, self.share, self.given, self._stated, seed)

    @cached_property
    def deviations(self) -> Mapping[str, float]:
        """The standard deviation of each measured objective's error, by name."""
        return {name: self.share * spread for name, spread in self.ranges.items()}

    @cached_property
    def ranges(self) -> Mapping[str, float]:
        """The range of each measured objective that the errors are a share of, by name."""
        if self._stated is not None:
            return self._stated
        rng = np.random.default_rng(0)
        drawn = [self.truth(self.space.sample(rng), self.fidelity).values for _ in range(SAMPLE)]
        return {o.name: float(np.ptp([v[o.name] for v in drawn])) for o in self.objectives if not o.known}

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return self.problem.known(config)

    def baselines(self) -> Mapping[str, moopt.Config]:
        return self.problem.baselines()

    def decisions(self) -> list[dict[str, Any]]:
        return self.problem.decisions()

    def forward_tokens(self, kind: str, fidelity: moopt.Fidelity) -> int:
        return self.problem.forward_tokens(kind, fidelity)

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        inner = self.problem.fingerprint()
        noise = {"share": self.share, "given": self.given, "seed": self.seed}
        return {**inner, "identity": {**inner["identity"], "noise": noise}}
