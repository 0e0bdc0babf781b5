"""Histories to draw: a bit allocation as a search leaves it, and what it takes to build smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from moopt import Constraint, Evaluation, Fidelity, History, Objective, Trial
from moopt.history import Event
from moopt.jobs import Failure, Job
from tests.views.histories import written

BITS = (2, 3, 4, 5, 6, 8)
COLUMNS = {"q,k,v": 0.55e6, "o": 0.33e6, "gate,up": 1.77e6, "down": 0.88e6}
"""Weights of a decision's linears in every layer."""
LOSS = np.array([11.0, 1.25, 0.33, 0.08, 0.020, 0.0025])
"""What a uniform model of each width loses."""
OBJECTIVES = (Objective("kl", unit="nats/token"), Objective("size_mb", unit="MB", known=True))


class Model:
    """A make-believe model of 30 layers: what a bit allocation costs and loses."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.names = [f"model.layers.{row}.{column}" for row in range(30) for column in COLUMNS]
        self.weights = np.array([COLUMNS[column] for _ in range(30) for column in COLUMNS])
        depth = np.repeat(1 + 1.5 * np.abs(np.linspace(-1, 1, 30)) ** 3, 4)
        kind = np.tile([1.0, 0.35, 1.3, 0.8], 30)
        shares = depth * kind * np.exp(rng.normal(0, 0.9, 120))
        shares[[3, 115]] *= 6
        self.sensitivity = shares / shares.sum()

    def decisions(self) -> list[dict[str, Any]]:
        entries = [(row, column) for row in range(30) for column in COLUMNS]
        return [
            {"name": name, "row": str(row), "column": column, "label": f"layer {row} {column}"}
            for name, (row, column) in zip(self.names, entries, strict=True)
        ]

    def allocate(self, size: float, trust: np.ndarray[Any, Any]) -> list[int]:
        """The options of the least loss within a size, for sensitivities seen through noise (Lagrangian bisection)."""
        loss, cost = np.outer(self.sensitivity * trust, LOSS), np.outer(self.weights, BITS)
        low, high = 1e-13, 1e-4
        for _ in range(40):
            price = (low * high) ** 0.5
            within = self.size(np.argmin(loss + price * cost, axis=1).tolist()) <= size
            low, high = (low, price) if within else (price, high)
        return [int(i) for i in np.argmin(loss + high * cost, axis=1)]

    def config(self, options: Sequence[int]) -> dict[str, Any]:
        return {name: BITS[i] for name, i in zip(self.names, options, strict=True)}

    def size(self, options: Sequence[int]) -> float:
        return float(30.1 + (self.weights * (np.array(BITS)[list(options)] + 0.375)).sum() / 8e6)

    def loss(self, options: Sequence[int], noise: float) -> float:
        return float((self.sensitivity * LOSS[list(options)]).sum() * np.exp(noise))


class Builder:
    """Writes a history trial by trial, as the coordinator would."""

    def __init__(
        self,
        objectives: Sequence[Objective] = OBJECTIVES,
        constraints: Sequence[Constraint] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.history = History("a study", objectives, constraints, meta or {})

    def add(
        self,
        values: Mapping[str, float] | Failure,
        config: Mapping[str, Any] | None = None,
        label: str | None = None,
        held_out: Mapping[str, float] | None = None,
        tokens: int = 1024,
        validated: Mapping[str, float] | None = None,
    ) -> Trial:
        history, number = self.history, len(self.history.trials)
        known = {o.name for o in history.objectives if o.known}
        trial = Trial(number, dict(config or {}), label=label, seconds=1.5, tokens=tokens)
        job = Job(number, trial.config, fidelity=Fidelity(tokens), label=label)
        if isinstance(values, Failure):
            outcome: Evaluation | Failure = values
            trial.state, trial.failure = "failed", values
        else:
            outcome = Evaluation({name: value for name, value in values.items() if name not in known})
            trial.state, trial.values, trial.evaluation = "complete", dict(values), outcome
            trial.violations = {c.name: values[c.name] - c.bound for c in history.constraints}
        history.trials.append(trial)
        seq = len(history.events)
        history.events += [Event(seq, job), Event(seq + 1, job, outcome, 1.5, tokens)]
        if held_out is not None:
            history.measures[number, "held-out"] = Evaluation(held_out)
        if validated is not None:
            history.measures[number, "validation"] = Evaluation(validated)
        return trial


def bit_allocation(seed: int = 0, searched: int = 48) -> History:
    """A study of bit widths: baselines, knapsacks, candidates of a search, failures and infeasible ones."""
    rng, model = np.random.default_rng(seed), Model(seed)
    space = {name: {"kind": "ordinal", "values": list(BITS)} for name in model.names}
    identity = {
        "model": "smollm2-135m", "data": "sha256:5d41402abc4b2a76b9719d911017c592", "group": 64, "space": space,
        "algorithm": {"algorithm": "NSGA2", "population": 20}, "seed": seed, "fidelity": {"tokens": 8192, "batch": 0},
    }  # fmt: skip
    meta = {"decisions": model.decisions(), "identity": identity, "environment": {"python": "3.12.3", "device": "cpu"}}
    build = Builder(OBJECTIVES, (Constraint("peak_mb", 190.0, "MB"),), meta)
    build.history.name = "smollm2-bits"

    def add(options: Sequence[int], label: str | None = None, penalty: float = 0.0, peak: float = 150.0) -> None:
        kl, size = model.loss(options, rng.normal(0, 0.02) + penalty), model.size(options)
        held = kl * np.exp(rng.normal(0.03, 0.03))
        extra = {
            "kl": held,
            "perplexity": 14.2 * np.exp(min(held, 6.0)),
            "top1_agreement": float(np.exp(-1.1 * held**0.5)),
        }
        build.add({"kl": kl, "size_mb": size, "peak_mb": peak}, model.config(options), label, extra, 8192)

    for i, bits in enumerate(BITS):
        add([i] * 120, f"uniform-{bits}")
    seen, sizes = np.exp(rng.normal(0, 0.5, 120)), [model.size([i] * 120) for i in range(len(BITS))]
    for at, label in enumerate(KNAPSACKS, 1):
        add(model.allocate((sizes[at // 2] + sizes[(at + 1) // 2]) / 2, seen), label)
    for i in range(searched):
        target = float(rng.uniform(sizes[0], sizes[-1])) if i % 8 else sizes[1 + i // 8 % 4]
        options = model.allocate(target, np.exp(rng.normal(0, 0.8 - 0.012 * i, 120)))
        if i % 16 == 9:
            build.add(
                Failure("killed", "the worker died (signal 9); it may have run out of memory"),
                model.config(options),
                tokens=2048,
            )
        else:
            add(options, penalty=float(rng.exponential(0.25)) * (i % 4 != 0), peak=210.0 if i % 12 == 5 else 150.0)
    return build.history


KNAPSACKS = (
    "knapsack between uniform-2 and uniform-3", "knapsack at uniform-3", "knapsack between uniform-3 and uniform-4",
    "knapsack at uniform-4", "knapsack between uniform-4 and uniform-5", "knapsack at uniform-5",
    "knapsack between uniform-5 and uniform-6", "knapsack at uniform-6", "knapsack between uniform-6 and uniform-8",
)  # fmt: skip


@pytest.fixture(scope="session")
def bits() -> History:
    """The main case, to be read and not written."""
    return bit_allocation()


@pytest.fixture
def builder() -> Callable[..., Builder]:
    """What builds a small history."""
    return Builder


@pytest.fixture(scope="session")
def large() -> History:
    """5,000 trials of 120 decisions and three objectives, to be read and not written."""
    return written(5000)
