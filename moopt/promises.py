"""What was promised of an export, held to bounds, and to what is found when it is loaded and measured again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moopt import conditions
from moopt.errors import ExportError
from moopt.exporting import WEIGHTS, Compared, Exported, exporter, read

SIZE = "size"
"""What bounds call the megabytes of an export's weights."""
SAME = 0.05
"""How far a figure may be from the promise, as a share of it."""
LEAST = {"kl": 0.003, "top1_agreement": 0.01}
"""How far it may be in any case, in its unit."""
SAME_SIZE, HEADER = 0.001, 1 << 16
"""How far a size may be from the promise: this share of it, or so many bytes of a header."""


class Check(NamedTuple):
    """A bound, and what an export has.

    Attributes:
        bound: The bound.
        value: What is bounded.
        where: Where it was measured: "held-out" if it was, else "validation" or "search"; "known" of what is exact.
    """

    bound: conditions.Bound
    value: float
    where: str

    @property
    def holds(self) -> bool:
        """Whether the export keeps to it."""
        return self.bound.holds(self.value)


def checked(found: Exported, condition: str) -> list[Check]:
    """Bounds on what was promised of an export, such as "kl <= 0.3 and size <= 80"; `size` is of its weights, in MB.

    Raises:
        StudyError: the condition cannot be read, or names what the export has not.
    """
    promised: Mapping[str, Mapping[str, Any]] = found.manifest["figures"]
    checks = []
    for bound in conditions.bounds(condition, [*promised, SIZE], "figure of this export"):
        if bound.name == SIZE:
            if not found.manifest["size"]:
                raise ExportError(f"{found.path} holds no weights; a bound on its size would say nothing.")
            checks.append(Check(bound, found.manifest["size"] / 1e6, "known"))
            continue
        each = promised[bound.name]
        where = _purpose(each, bound.name, found.path)
        checks.append(Check(bound, float(each[where]), "known" if each.get("known") else where))
    return checks


class Kept(NamedTuple):
    """A promise, and what was found of it.

    Attributes:
        name: The figure's.
        promised: What was promised.
        where: On what: "held-out" text, the "search"'s, or "known".
        found: What was found.
        holds: Whether that is the same but for rounding; None where it was promised on another text.
    """

    name: str
    promised: float
    where: str
    found: float
    holds: bool | None


def verify(path: str | Path) -> list[Kept]:
    """Load an export with the program it is for, measure it again on held-out text, and hold it to its promises.

    Raises:
        ExportError: it is no export, a file was altered, or its program cannot be run from here.
    """
    found = read(path)
    manifest, promised = found.manifest, found.manifest["figures"]
    if not manifest.get("compared"):
        raise ExportError(f"{path} does not say what its figures were compared with; only its size can be checked.")
    size = sum(each["bytes"] for name, each in manifest["files"].items() if name.endswith(WEIGHTS))
    off = abs(size - manifest["size"])
    kept = [Kept("size", manifest["size"], "known", size, off <= max(SAME_SIZE * manifest["size"], HEADER))]
    for name, value in exporter(manifest["format"]).measure(found.path, Compared(**manifest["compared"])).items():
        if name in promised:
            where = _purpose(promised[name], name, path)
            said = float(promised[name][where])
            same = abs(value - said) <= max(SAME * abs(said), LEAST.get(name, 0.0))
            kept.append(Kept(name, said, where, value, same if where == "held-out" else None))
    return kept


def _purpose(figure: Mapping[str, Any], name: str, path: str | Path) -> str:
    """Where a figure was measured that is promised: on held-out data if it was.

    Raises:
        ExportError: it is no number anywhere.
    """
    for purpose in ("held-out", "validation", "search"):
        if figure.get(purpose) is not None:
            return purpose
    raise ExportError(f"The {name} of {path} is no number; nothing can be said of it.")
