"""A chosen candidate as files that a server loads: whole or not at all, with what was promised of it beside them.

A format is an `Exporter`, found through the entry point group `moopt.exporters`. This module knows none of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from moopt.errors import ExportError
from moopt.history import History, Trial
from moopt.problem import Problem
from moopt.space import Config
from moopt.whole import new_folder

GROUP = "moopt.exporters"
MANIFEST = "moopt.json"
"""What stands beside every export: where it comes from, what was promised, and a hash of each file."""
CARD = "README.md"
WEIGHTS, CODE = (".safetensors", ".gguf"), (".py", ".bin", ".pt", ".pth", ".pkl")
"""Endings of files that hold weights, and of what may run code when it is loaded: no export has the latter."""


class Compared(NamedTuple):
    """How the figures of a language model were measured.

    Attributes:
        model: What it was compared with: an embedded name, a folder or a Hugging Face id.
        text: The text's source: see `moopt.backend.text.Text`.
        context: Tokens of a sequence.
        tokens: Tokens of the held-out text.
    """

    model: str
    text: str
    context: int
    tokens: int


@dataclass(frozen=True)
class Written:
    """What an exporter wrote.

    Attributes:
        size: The bytes of the files that hold weights, as they were predicted.
        serve: Commands that serve it; "{path}" stands for the folder.
        notes: What a user should know: what is stored otherwise than it was searched.
        bases: The models it was made of, as the hub knows them.
        licence: What all of these are under; empty if their files do not say, or differ.
        compared: How its figures were measured, so that they can be again.
    """

    size: int
    serve: Sequence[str] = ()
    notes: Sequence[str] = ()
    bases: Sequence[str] = ()
    licence: str = ""
    compared: Compared | None = None


class Exporter(ABC):
    """Writes candidates of problems in one format.

    Attributes:
        name: What the format is called, and the entry point.
        about: Who reads it, in a few words.
        everywhere: What `raised` raises to, as the end of "raised to what ...".
    """

    name: ClassVar[str]
    about: ClassVar[str]
    everywhere: ClassVar[str] = "every server of the format loads"

    @abstractmethod
    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        """Write a candidate into an empty folder.

        Raises:
            ExportError: the format cannot hold it; names what does not fit and says what to do.
        """

    def raised(self, problem: Problem, config: Config) -> Config:
        """A candidate with each option that some server of the format does not load raised to the next that all do.

        Raises:
            ExportError: nothing can be raised; says why.
        """
        raise ExportError(f"{self.name} has nothing to raise: it holds what it holds on every server.")

    def measure(self, folder: Path, compared: Compared) -> Mapping[str, float]:
        """The figures of an export in the program that it is for, on the held-out text.

        Raises:
            ExportError: that program cannot be run from here.
        """
        raise ExportError(f"{self.name} has no program that is run from here: compare sizes by moopt gate.")


@dataclass(frozen=True)
class Exported:
    """An export that is on the disk.

    Attributes:
        path: Its folder.
        manifest: What `moopt.json` says.
    """

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def serve(self) -> list[str]:
        """The commands that serve it."""
        return list(self.manifest["serve"])


def names() -> list[str]:
    """The names of the formats there are, without loading any."""
    return sorted(point.name for point in entry_points(group=GROUP))


def formats() -> dict[str, str]:
    """The formats there are, with who reads them; those of plug-ins that cannot be loaded say why."""
    return {point.name: _about(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        ExportError: there is none; lists what there is.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ExportError(f"There is no format {name!r}; expected one of {', '.join(sorted(points))}.")
    found: Exporter = points[name].load()()
    return found


def export(
    problem: Problem, history: History, trial: Trial, format: str, path: str | os.PathLike[str],
    snap: str | None = None,
) -> Exported:  # fmt: skip
    """Write a trial's candidate as a folder of a format, with `moopt.json` and a model card.

    Args:
        problem: What was searched.
        history: What was found.
        trial: A completed trial.
        format: The name of an exporter.
        path: The folder; there must be nothing yet.
        snap: "up" raises options that some server of the format does not load to the next that all do. It is another
            candidate then: its figures are measured anew, and stand beside those of the trial.

    Raises:
        ExportError: there is something at the path, no such format, or it cannot hold the candidate.
    """
    if snap not in (None, "up"):
        raise ExportError(f"Got snap={snap!r}; expected 'up', or nothing.")
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ExportError(f"Got the path {path!r}; expected the name of a folder that is not there yet.")
    folder, how = _expanded(path), exporter(format)
    if os.path.lexists(folder):
        raise ExportError(f"{folder} exists already; give a path where there is nothing.")
    with new_folder(folder, ExportError) as temporary:
        config = trial.config if snap is None else how.raised(problem, trial.config)
        promised, notes = figures(history, trial), list[str]()
        changed = {name: [trial.config[name], to] for name, to in config.items() if to != trial.config[name]}
        if changed:
            promised, cost = remeasured(problem, history, trial, config)
            notes.append(f"{listed(changed)} raised to what {how.everywhere}: {cost}.")
        written = how.write(problem, config, temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        manifest = {
            "format": format,
            "study": {"name": history.name, "trial": trial.number, "label": trial.label or ""},
            "figures": promised,
            "raised": changed,
            "size": written.size,
            "serve": [command.replace("{path}", shlex.quote(str(folder))) for command in written.serve],
            "notes": [*notes, *written.notes],
            "bases": list(written.bases),
            "licence": written.licence,
            "compared": None if written.compared is None else written.compared._asdict(),
            "config": dict(config),
            "identity": history.meta["identity"],
            "versions": {**{name: version(name) for name in ("moopt", "torch")}, "python": platform.python_version()},
            "made": datetime.now(UTC).date().isoformat(),
            "files": {str(file.relative_to(temporary)): _hashed(file) for file in files},
        }
        manifest = json.loads(json.dumps(_finite(manifest), default=str))
        (temporary / CARD).write_text(card(manifest))
        manifest["check"] = _check(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str, allow_nan=False) + "\n")
    return Exported(folder, manifest)


def _expanded(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ExportError(f"Got the path {os.fspath(path)!r}: {error}") from error


def read(path: str | Path) -> Exported:
    """An export, every file of it checked.

    Raises:
        ExportError: it is none, or a file is missing or is not what was written; names it.
    """
    folder = Path(path)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        check = manifest.pop("check")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder} is no export: it has no {MANIFEST} that can be read ({error}).") from error
    if check != _check(manifest):
        raise ExportError(f"{folder / MANIFEST} is not what was exported: its checksum differs; copy it again.")
    manifest["check"] = check
    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix in (*WEIGHTS, *CODE)}
    if added := sorted(present - set(files)):
        raise ExportError(f"{folder / added[0]} was not exported: remove it, or export anew.")
    for name, wanted in files.items():
        place = folder / name
        if not place.is_file():
            raise ExportError(f"{folder} lacks {name}, which was exported; copy it again.")
        if _hashed(place) != dict(wanted):
            raise ExportError(f"{place} is not what was exported: its size or its checksum differs; copy it again.")
    return Exported(folder, manifest)


def figures(history: History, trial: Trial) -> dict[str, dict[str, Any]]:
    """What was found of a trial, by objective: the search's value, the unit, and what was measured on other data."""
    found: dict[str, dict[str, Any]] = {
        o.name: {"search": trial.values[o.name], "unit": o.unit, "known": o.known} for o in history.objectives
    }
    for (number, purpose), measured in history.measures.items():
        if number == trial.number:
            for name, value in measured.values.items():
                found.setdefault(name, {"unit": ""})[purpose] = value
    return found


def remeasured(
    problem: Problem, history: History, trial: Trial, config: Config
) -> tuple[dict[str, dict[str, Any]], str]:
    """The figures of another candidate than a trial, and what both have, in words: measured on the same data."""
    purpose = next((name for name in ("held-out", "validation") if name in problem.measurements), "search")
    fidelity = problem.measurements.get(purpose, problem.fidelity)
    before, after = (
        {**problem.evaluate(each, fidelity).values, **problem.known(each)} for each in (trial.config, config)
    )
    found: dict[str, dict[str, Any]] = {}
    for o in history.objectives:
        if o.name in after:
            where = "search" if o.known else purpose
            found[o.name] = {where: after[o.name], "unit": o.unit, "known": o.known}
    told = [f"{n} {before[n]:.6g} -> {after[n]:.6g} {each['unit']}".strip() for n, each in found.items() if n in before]
    return found, "; ".join(told)


def listed(changed: Mapping[str, Sequence[Any]], most: int = 3) -> str:
    """How many options are others than before, and the first few."""
    shown = "; ".join(f"{name} {old} -> {new}" for name, (old, new) in [*changed.items()][:most])
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return f"{len(changed)} options ({shown}{more}) were"


def card(manifest: Mapping[str, Any]) -> str:
    """A model card: what it is made of, what was measured, and how to serve it."""
    study, bases = manifest["study"], manifest["bases"]
    columns = list(dict.fromkeys(key for each in manifest["figures"].values() for key in each if key not in _OURS))
    known: dict[str, Any] = {"license": manifest["licence"], "base_model": bases, "tags": ["moopt"]}
    title = " + ".join(bases) or study["name"]
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in known.items() if value), "---", "",
        f"# {_plain(title)}, {manifest['format']}", "",
        f"Trial {study['trial']} of the study {_plain(study['name'])}, found and exported by moopt "
        f"{manifest['versions']['moopt']} on {manifest['made']}.", "",
        f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}",
    ]  # fmt: skip
    for name, each in manifest["figures"].items():
        cells = [_plain(f"{each[c]:.6g} {each['unit']}".strip()) if each.get(c) is not None else "" for c in columns]
        lines.append(f"| {_plain(name)} | {' | '.join(cells)} |")
    lines += ["", f"Weights take {manifest['size']:,} bytes."]
    lines += [f"\n{_plain(note)}" for note in manifest["notes"]]
    if manifest["serve"]:
        lines += ["", "## Serve it", "", "```bash", *manifest["serve"], "```"]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A name as Markdown shows it, whatever is in it."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


_OURS = ("unit", "known")
"""What a figure has besides values."""


def _check(manifest: Mapping[str, Any]) -> str:
    """The checksum of a manifest, without itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, default=str).encode()).hexdigest()


def _finite(value: Any) -> Any:
    """The same without numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hashed(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def _about(point: Any) -> str:
    try:
        return str(point.load().about)
    except Exception as error:
        return f"cannot be loaded: {error}"
