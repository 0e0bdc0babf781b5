"""The card that says what was run: the study, its algorithm, its problem and what it has cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from moopt.history import History
from moopt.views import look
from moopt.views.card import Card

TITLE = "What was run"
SHOWN_APART = {"space", "objectives", "constraints", "fidelity", "algorithm", "seed"}
"""Entries of the identity that have a line of their own, or are drawn."""


def run_data(history: History) -> pd.DataFrame:
    """Two columns, `what` and `value`, both text."""
    lines = [*_setup(history), *_outcomes(history), *_cost(history)]
    return pd.DataFrame(lines, columns=["what", "value"])


def run_card(history: History) -> Card:
    """Everything needed to run the study again, and what came of it."""
    sentence = (
        "These are the study's settings, the environment it ran in, and what it has cost: enough to run it again."
    )
    return Card(TITLE, sentence, run_data(history))


def _setup(history: History) -> Iterator[tuple[str, str]]:
    identity = history.meta.get("identity", {})
    yield "study", history.name
    algorithm = identity.get("algorithm")
    settings = dict(algorithm) if isinstance(algorithm, Mapping) else {"algorithm": algorithm or "unknown"}
    yield "algorithm", str(settings.pop("algorithm", "unknown"))
    yield from _flat(settings, "algorithm: ")
    if "seed" in identity:
        yield "seed", str(identity["seed"])
    for objective in history.objectives:
        known = ", known exactly" if objective.known else ", measured"
        yield f"objective: {objective.name}", f"{objective.direction}imise, in {objective.unit or 'no unit'}{known}"
    for constraint in history.constraints:
        yield f"constraint: {constraint.name}", f"at most {look.amount(constraint.bound, constraint.unit)}"
    if decisions := history.meta.get("decisions"):
        yield "decisions", str(len(decisions))
    yield from _flat(identity.get("fidelity") or {}, "fidelity: ")
    yield from _flat({k: v for k, v in identity.items() if k not in SHOWN_APART})
    yield from _flat(history.meta.get("environment", {}), "environment: ")


def _outcomes(history: History) -> Iterator[tuple[str, str]]:
    states = Counter(trial.state for trial in history.trials)
    yield "trials", ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none yet"
    if infeasible := sum(trial.state == "complete" and not trial.feasible for trial in history.trials):
        yield "complete but infeasible", str(infeasible)
    reasons = Counter(f"{t.failure.kind}: {t.failure.message}" for t in history.trials if t.failure is not None)
    for reason, n in reasons.most_common():
        yield f"failed {n} {'time' if n == 1 else 'times'}", reason


def _cost(history: History) -> Iterator[tuple[str, str]]:
    yield "forward tokens", f"{history.tokens:,}"
    yield "seconds of evaluation", look.number(sum(event.seconds for event in history.events))
    if history.feasible():
        yield "points on the front", str(len(history.front()))
        corner = zip(history.objectives, history.reference().tolist(), strict=True)
        yield "hypervolume", look.number(history.hypervolume())
        yield "reference point", ", ".join(f"{o.name} {look.amount(v * o.sign, o.unit)}" for o, v in corner)


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines of text."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
