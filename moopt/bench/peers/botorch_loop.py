"""The loop of botorch's tutorials: a Gaussian process an objective, qLogNEHVI, one candidate at a time."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model_list_gp_regression import ModelListGP
from botorch.models.transforms import Standardize
from botorch.optim.optimize import optimize_acqf, optimize_acqf_discrete_local_search
from botorch.optim.optimize_mixed import optimize_acqf_mixed_alternating
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.hypervolume import infer_reference_point
from gpytorch.mlls import SumMarginalLogLikelihood
from scipy.stats import qmc
from torch import Tensor

from moopt.bench.peers.base import FloatArray, Peer
from moopt.space import Config


class _Effort(NamedTuple):
    """Samples the acquisition is averaged over, random candidates it is tried at, and how many of them are improved."""

    samples: int
    draws: int
    starts: int


TUTORIAL = _Effort(128, 512, 10)
LOCAL_SEARCH = _Effort(64, 256, 4)
"""Less than the tutorials' where there are levels: the local search evaluates every neighbour at every step."""


class BotorchLoop(Peer):
    """Baselines and Sobol points first, 2 (d + 1) in all and at most half of the evaluations; then qLogNEHVI.

    Variables are scaled to [0, 1], levels and choices by their index. The reference point is the declared one, where
    every objective declares one.
    """

    def start(self) -> None:
        space = self.problem.space
        self._span = np.maximum(space.upper - space.lower, 1e-12)
        count = min(2 * (len(space) + 1), self.evaluations // 2) - len(self.baselines)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a number of points that is no power of 2
            sobol = qmc.Sobol(len(space), rng=self.seed).random(max(count, 1))
        margin = space.discrete / 2
        rows = space.lower - margin + sobol * (space.upper - space.lower + 2 * margin)
        self._first = [*self.baselines, *(space.decode(row) for row in rows)]
        self._inputs: list[FloatArray] = []
        self._outputs: list[FloatArray] = []
        self._effort = LOCAL_SEARCH if space.discrete.any() else TUTORIAL
        declared = [o.reference for o in self.problem.objectives]
        self._reference = None if None in declared else [-o.sign * o.reference for o in self.problem.objectives]  # type: ignore[operator]

    def suggest(self) -> Config:
        if len(self._inputs) < len(self._first):
            return self._first[len(self._inputs)]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits
            torch.manual_seed(self.seed * 10_000 + len(self._inputs))
            row = self._best(*self._modelled())
        return self.problem.space.decode(self.problem.space.lower + row.numpy() * self._span)

    def learn(self, config: Config, objectives: FloatArray, constraints: FloatArray) -> None:
        space = self.problem.space
        self._inputs.append((space.encode(config) - space.lower) / self._span)
        self._outputs.append(np.concatenate([-objectives, constraints]))

    def _modelled(self) -> tuple[Any, Tensor]:
        """The acquisition function, and the inputs [n, d] it knows."""
        inputs, outputs = torch.tensor(np.array(self._inputs)), torch.tensor(np.array(self._outputs))
        m, c = len(self.problem.objectives), len(self.problem.constraints)
        models = [SingleTaskGP(inputs, column[:, None], outcome_transform=Standardize(1)) for column in outputs.T]
        model = ModelListGP(*models)
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        reference = self._reference or infer_reference_point(outputs[:, :m]).tolist()
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model, reference, inputs, SobolQMCNormalSampler(torch.Size([self._effort.samples])), prune_baseline=True,
            objective=IdentityMCMultiOutputObjective(outcomes=list(range(m)), num_outcomes=m + c),
            constraints=[partial(_output, m + k) for k in range(c)] or None,
        )  # fmt: skip
        return acquisition, inputs

    def _best(self, acquisition: Any, known: Tensor) -> Tensor:
        """The row [d] where the acquisition is highest."""
        space = self.problem.space
        levels = {
            i: np.linspace(0, 1, int(self._span[i]) + 1).tolist()
            for i in np.flatnonzero(space.discrete & (space.upper > space.lower)).tolist()
        }
        _, draws, starts = self._effort
        bounds = torch.tensor([[0.0] * len(space), [1.0] * len(space)], dtype=torch.double)
        if not levels:
            found, _ = optimize_acqf(acquisition, bounds, 1, starts, draws, options={"batch_limit": 5, "maxiter": 200})
        elif space.discrete.all():
            choices = [torch.tensor(levels.get(i, [0.0]), dtype=torch.double) for i in range(len(space))]
            found, _ = optimize_acqf_discrete_local_search(acquisition, choices, 1, starts, draws, X_avoid=known)
        else:
            found, _ = optimize_acqf_mixed_alternating(
                acquisition, bounds, discrete_dims=levels, q=1, raw_samples=draws, num_restarts=starts
            )
        return found[0]


def _output(k: int, samples: Tensor) -> Tensor:
    """Output k of samples [..., outputs]."""
    return samples[..., k]
