"""Histories written down and not run: of any size and number of objectives, with what can go wrong in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from moopt import Constraint, Evaluation, Fidelity, History, Objective, Trial
from moopt.history import Event
from moopt.jobs import Failure, Job

BITS = (2, 3, 4, 6, 8)
NAMES = ("kl", "size_mb", "accuracy", "latency_ms", "memory_mb")
START = datetime(2026, 1, 1, tzinfo=UTC)
BROKEN = Failure("killed", "the worker died (signal 9); it may have run out of memory")


def objectives_of(m: int) -> tuple[Objective, ...]:
    """Up to five: the first is measured, the second known, the third is maximised."""
    return tuple(Objective(name, "max" if i == 2 else "min", known=i == 1) for i, name in enumerate(NAMES[:m]))


def written(trials: int, m: int = 3, decisions: int = 120, seed: int = 0, odd: bool = True) -> History:
    """A history as a search would leave it: baselines, ever better candidates, variances and predictions.

    Args:
        trials: How many.
        m: Objectives, up to five.
        decisions: Each of them one of five widths.
        seed: Of the noise; the sizes of a study are those of any other.
        odd: Whether one trial in 20 fails, one in 9 is infeasible, and two have values that no evaluation may have.
    """
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(decisions)]
    weights = np.random.default_rng(1).exponential(1.0, decisions) + 0.1
    identity = {
        "space": {name: {"kind": "ordinal", "values": list(BITS)} for name in names},
        "algorithm": {"algorithm": "NSGA2", "population": 20},
        "seed": seed,
    }
    history = History(f"written-{seed}", objectives_of(m), [Constraint("peak_mb", 190.0, "MB")], {"identity": identity})
    for number in range(trials):
        uniform = number < len(BITS)
        place = number if uniform else rng.integers(len(BITS), size=decisions)
        options = np.full(decisions, place) if uniform else np.minimum(place, rng.integers(1, len(BITS) + 1))
        widths = np.array(BITS)[options]
        config = dict(zip(names, widths.tolist(), strict=True))
        exact = float((weights * 4.0**-widths).sum() / weights.sum())
        values = {
            "kl": exact * float(np.exp(rng.normal(0, 0.1))),
            "size_mb": float(widths.mean()),
            "accuracy": float(1 - exact + rng.normal(0, 0.01)),
            "latency_ms": float(5 + widths.mean() + rng.normal(0, 1)),
            "memory_mb": float(50 + widths.max() * 10 + rng.normal(0, 5)),
        }
        values = {name: values[name] for name in NAMES[:m]} | {"peak_mb": 200.0 if odd and number % 9 == 7 else 150.0}
        if odd and number in (12, 14):
            values["kl"] = float("nan") if number == 12 else float("inf")
        _add(history, config, values, exact, f"uniform-{BITS[number]}" if uniform else None, odd and number % 20 == 19)
    return history


def _add(
    history: History, config: dict[str, int], values: dict[str, float], exact: float, label: str | None, fails: bool
) -> None:
    """One more trial with its events, as the coordinator would."""
    number = len(history.trials)
    note = {"predicted": {"kl": [0.7 * exact, exact, 1.4 * exact]}} if number >= 8 else {}
    job = Job(number, config, fidelity=Fidelity(1024), label=label, note=note)
    trial = Trial(number, config, label=label, seconds=1.5, tokens=1024)
    trial.ended = START + timedelta(seconds=1.5 * (number // 2 + 1))
    known = {o.name for o in history.objectives if o.known}
    outcome: Evaluation | Failure = BROKEN
    if fails:
        trial.state, trial.failure = "failed", BROKEN
    else:
        given = {name: value for name, value in values.items() if name not in known}
        variances = {o.name: (0.05 * values[o.name]) ** 2 for o in history.objectives if not o.known}
        outcome = Evaluation(given, variances)
        trial.state, trial.values, trial.evaluation = "complete", values, outcome
        trial.violations = {c.name: values[c.name] - c.bound for c in history.constraints}
        if number % 3 == 0:
            history.measures[number, "held-out"] = Evaluation({"kl": values["kl"] * 1.02})
    history.trials.append(trial)
    seq = len(history.events)
    history.events += [Event(seq, job), Event(seq + 1, job, outcome, 1.5, 1024)]
