"""A joint study seen as a study of one of its parts, so that the cards of each problem show it, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moopt.history import History


def as_part(history: History, kind: str) -> History | None:
    """The study with the decisions of one kind of problem, of which it is or which is a part; None if it has none.

    Args:
        history: The study.
        kind: The problem's class, such as "ModelMerge".
    """
    identity = history.meta.get("identity", {})
    if identity.get("problem") == kind:
        return history
    for name, part in (identity.get("parts") or {}).items():
        if part.get("problem") == kind:
            return _only(history, name, part)
    return None


def _only(history: History, name: str, identity: Mapping[str, Any]) -> History:
    """The history with one part's decisions, called as that part calls them."""
    prefix = f"{name}/"
    decisions = [
        {**each, "name": each["name"].removeprefix(prefix), "column": each["column"].removeprefix(f"{name}: ")}
        for each in history.meta.get("decisions", ())
        if each["name"].startswith(prefix)
    ]
    trials = [
        replace(trial, config={k.removeprefix(prefix): v for k, v in trial.config.items() if k.startswith(prefix)})
        for trial in history.trials
    ]
    return replace(history, meta={**history.meta, "identity": identity, "decisions": decisions}, trials=trials)
