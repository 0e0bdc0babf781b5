"""Studies to be compared: whether they can be, what each is called, and which differ in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moopt import pareto
from moopt.errors import StudyError, StudyMismatch
from moopt.history import History, Trial
from moopt.problem import Objective
from moopt.views import look


@dataclass(frozen=True)
class Rival:
    """One of the studies.

    Attributes:
        label: Its name, with a number where several have it.
        algorithm: The name of what searched.
        group: What those that differ in the seed alone are called together.
        colour: Of its group.
        front: Its front.
        points: The front's objectives, signs turned, in the order of the first study's, [n, m].
    """

    history: History
    label: str
    algorithm: str
    group: str
    colour: str
    front: list[Trial]
    points: pareto.FloatArray


@dataclass(frozen=True)
class Rivals:
    """All of the studies.

    Attributes:
        objectives: What they share.
        corner: The reference point that hypervolumes are measured to, signs turned, [m]; None without any point.
    """

    members: list[Rival]
    objectives: Sequence[Objective]
    corner: pareto.FloatArray | None

    @property
    def nothing(self) -> str:
        """Why there is nothing to draw; empty if there is."""
        return "" if any(rival.front for rival in self.members) else "No trial of any study is complete and feasible."

    def in_groups(self) -> Iterator[tuple[Rival, bool]]:
        """The studies, and whether each is the first of its group."""
        seen: set[str] = set()
        for rival in self.members:
            yield rival, rival.group not in seen
            seen.add(rival.group)


def rivals(histories: Sequence[History]) -> Rivals:
    """The studies, ready to be compared.

    Raises:
        StudyMismatch: their objectives differ; says which.
        StudyError: there is none.
    """
    if not histories:
        raise StudyError("Got no study to compare; expected one or more.")
    objectives = histories[0].objectives
    for history in histories[1:]:
        _check(histories[0], history)
    groups = _groups(histories)
    colours = {group: look.UNORDERED[i % len(look.UNORDERED)] for i, group in enumerate(dict.fromkeys(groups))}
    labels = _numbered([history.name for history in histories])
    members = []
    for history, label, group in zip(histories, labels, groups, strict=True):
        front = history.front()
        points = pareto.minimised([t.values for t in front], objectives)
        members.append(Rival(history, label, _algorithm(history), group, colours[group], front, points))
    return Rivals(members, objectives, _corner(histories, objectives))


def _check(first: History, other: History) -> None:
    """Refuse studies whose figures cannot be compared."""
    mine, theirs = (
        {o.name: f"{o.name} ({o.direction}, in {o.unit or 'no unit'})" for o in history.objectives}
        for history in (first, other)
    )
    if mine != theirs:
        ours = ", ".join(text for name, text in mine.items() if theirs.get(name) != text) or "no other"
        others = ", ".join(text for name, text in theirs.items() if mine.get(name) != text) or "no other"
        raise StudyMismatch(
            f"The studies {first.name!r} and {other.name!r} have different objectives: the first has {ours}, the "
            f"second has {others}. Compare studies of the same objectives."
        )


def _corner(histories: Sequence[History], objectives: Sequence[Objective]) -> pareto.FloatArray | None:
    """Declared by the first study's objectives, else inferred from all baselines, or from all trials without any."""
    feasible = [trial for history in histories for trial in history.feasible()]
    opening = [trial for trial in feasible if trial.label is not None] or feasible
    if not opening:
        return None
    declared = [None if o.reference is None else o.reference * o.sign for o in objectives]
    return pareto.reference_point(pareto.minimised([t.values for t in opening], objectives), declared)


def _groups(histories: Sequence[History]) -> list[str]:
    """What each study's group is called: its algorithm, or a study's name where several groups have that algorithm."""
    keys = [_identity(history) for history in histories]
    firsts = {key: history for key, history in reversed(list(zip(keys, histories, strict=True)))}
    named = {key: _algorithm(history) for key, history in firsts.items()}
    clashing = {name for name in named.values() if list(named.values()).count(name) > 1}
    names = {key: f"{name}: {firsts[key].name}" if name in clashing else name for key, name in named.items()}
    distinct = dict(zip(names, _numbered(list(names.values())), strict=True))
    return [distinct[key] for key in keys]


def _identity(history: History) -> str:
    """Everything that a study is but its seed and its name; a study without an identity is like no other."""
    identity = history.meta.get("identity")
    if not isinstance(identity, Mapping):
        return f"study {id(history)}"
    rest: dict[str, Any] = {key: value for key, value in identity.items() if key != "seed"}
    return json.dumps(rest, sort_keys=True, default=str)


def _algorithm(history: History) -> str:
    settings = history.meta.get("identity", {}).get("algorithm")
    return str((settings.get("algorithm") if isinstance(settings, Mapping) else settings) or history.name)


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, those that came before with a number behind."""
    found: list[str] = []
    for name in names:
        times = 1
        while (label := name if times == 1 else f"{name} ({times})") in found:
            times += 1
        found.append(label)
    return found
