"""What a model-based suggestion costs: our Gaussian process beside botorch's, and a batch at 120 decisions.

    python studies/benchmarks/surrogates.py

Exits with an error if ours is slower or predicts clearly worse, or if a batch of 4 takes more than 3 seconds.
"""

import platform
import sys
import time
import warnings
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import zip_longest

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood

import moopt
from moopt import pareto
from moopt.algorithms import QNEHVI
from moopt.jobs import perform
from moopt.one_thread import one_thread
from moopt.surrogates import Data
from moopt.surrogates.gaussian import GaussianProcess
from moopt_problems import BitAllocation
from moopt_problems.synthetic import BitToy, PymooFunction

SHAPES = [(30, 6), (60, 6), (100, 10), (200, 20)]
SEEDS = 5
MOST_SECONDS, MOST_ERROR = 3.0, 1.05
"""Seconds for a batch of 4; the median error of our predictions over that of botorch's."""


def theirs(codes, values, new):
    """Seconds and predictions of botorch's `SingleTaskGP`, one thread."""
    began = time.perf_counter()
    model = SingleTaskGP(torch.from_numpy(codes), torch.from_numpy(values)[:, None], outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    seconds = time.perf_counter() - began
    with torch.no_grad():
        return seconds, model.posterior(torch.from_numpy(new)).mean.numpy()[:, 0]


@one_thread()
def ours(codes, values, new):
    """Seconds and predictions of ours."""
    began = time.perf_counter()
    process = GaussianProcess(Data(codes, values), lambda rows: rows)
    return time.perf_counter() - began, process.mean(new)


def beside_botorch(n, d):
    """Median seconds of both, and the median ratio of errors, on the first objective of DTLZ2."""
    problem, found = PymooFunction("dtlz2", d, 2), []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        codes, new = rng.random((n, d)), rng.random((500, d))
        values, truth = (np.asarray(problem.pymoo.evaluate(rows))[:, 0] for rows in (codes, new))
        (slow, far), (fast, near) = theirs(codes, values, new), ours(codes, values, new)
        found.append((slow, fast, np.abs(near - truth).mean() / np.abs(far - truth).mean()))
    return np.median(found, axis=0)


class Widths(BitAllocation):
    """SmolLM2's 120 decisions, with a KL that costs nothing."""

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"kl": 30 * sum(4.0**-bits for bits in config.values()) / len(config)})


def batches(problem, observations):
    """Seconds of batches of 4 with so many observations: one that fits the surrogates, then those that do not."""
    algorithm, rng = QNEHVI(), np.random.default_rng(0)
    algorithm.start(problem, 0)
    baselines = problem.baselines()
    shares = np.sort(rng.random(observations - len(baselines)))
    drawn = (problem.space.decode(rng.binomial(4, share, size=len(problem.space))) for share in shares)
    jobs = algorithm.jobs([*baselines.values(), *algorithm.unseen(drawn, len(shares), rng, baselines.values())])
    jobs = [replace(job, label=label) for job, label in zip_longest(jobs, baselines)]
    algorithm.issued(jobs)
    algorithm.tell([(job, perform(problem, job)) for job in jobs])
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        asked = algorithm.ask(4)
        seconds.append(time.perf_counter() - began)
        algorithm.issued(asked)
        algorithm.tell([(job, perform(problem, job)) for job in asked])
    return seconds


def updates():
    """The slowest of 5 updates of a front of 5 objectives at 1,000 points, hypervolume included."""
    slowest = 0.0
    for seed in range(5):
        points = np.abs(np.random.default_rng(seed).standard_normal((1000, 5)))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        began = time.perf_counter()
        pareto.hypervolume(points[pareto.nondominated(points)], np.full(5, 1.1))
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = True
    packages = " ".join(f"{name} {version(name)}" for name in ("botorch", "gpytorch", "numpy", "scipy"))
    print(f"{date.today()}, {platform.machine()}, Python {platform.python_version()}; {packages}")
    for n, d in SHAPES:
        slow, fast, error = beside_botorch(n, d)
        kept &= fast < slow and error < MOST_ERROR
        print(f"{n} x {d}: botorch {slow:.3f} s, moopt {fast:.3f} s, {slow / fast:.0f}x; error over theirs {error:.3f}")
    problems = {"a toy": BitToy(120, sensitivities=False), "SmolLM2": Widths("smollm2-135m", sensitivities=None)}
    for name, problem in problems.items():
        first, *later = batches(problem, 200)
        kept &= max(first, *later) < MOST_SECONDS
        print(f"QNEHVI, 120 decisions of {name}, 200 observations: a batch of 4 {first:.2f} s, then {max(later):.2f} s")
    slowest = updates()
    kept &= slowest < 2
    print(f"front and hypervolume of 1,000 points in 5 objectives: {slowest:.2f} s at most")
    if not kept:
        sys.exit("A limit is broken.")


if __name__ == "__main__":
    main()
