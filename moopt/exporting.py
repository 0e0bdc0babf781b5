"""A chosen candidate as files that a server loads: whole or not at all, with what was promised of it beside them.

A format is an `Exporter`, found through the entry point group `moopt.exporters`. This module knows none of them.
"""

from __future__ import annotations

import hashlib
import json
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
    """

    name: ClassVar[str]
    about: ClassVar[str]

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
    folder, how = Path(path).expanduser(), exporter(format)
    if os.path.lexists(folder):
        raise ExportError(f"{folder} exists already; give a path where there is nothing.")
    with new_folder(folder, ExportError) as temporary:
        config = trial.config if snap is None else how.raised(problem, trial.config)
        promised, notes = figures(history, trial), []
        if changed := {name: [trial.config[name], to] for name, to in config.items() if to != trial.config[name]}:
            promised = _measured(problem, config, before := promised)
            notes.append(_cost(changed, before, promised))
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
        (temporary / CARD).write_text(card(manifest))
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, default=str) + "\n")
    return Exported(folder, manifest)


def read(path: str | Path) -> Exported:
    """An export, every file of it checked.

    Raises:
        ExportError: it is none, or a file is missing or is not what was written; names it.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder} is no export: it has no {MANIFEST} that can be read ({error}).") from error
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


def _measured(problem: Problem, config: Config, before: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures of another candidate: those that are known, and what is measured on held-out data."""
    purpose = next((name for name in ("held-out", "validation") if name in problem.measurements), "search")
    found = problem.evaluate(config, problem.measurements.get(purpose, problem.fidelity)).values
    known = problem.known(config)
    kinds = {name: {"unit": each["unit"], "known": each.get("known", False)} for name, each in before.items()}
    return {
        name: {"search" if name in known else purpose: ({**found, **known})[name], **kind}
        for name, kind in kinds.items()
        if name in known or name in found
    }


def _cost(
    changed: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> str:
    """What raising options costs, in a sentence."""
    found = []
    for name, each in after.items():
        where = next(key for key in each if key not in _OURS)
        was = before[name].get(where)
        found.append(f"{name} {'' if was is None else f'{was:.6g} -> '}{each[where]:.6g} {each['unit']}".strip())
    shown = "; ".join(f"{name} {old} -> {new}" for name, (old, new) in [*changed.items()][:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raised = f"{len(changed)} options were raised to what every server of this format loads ({shown}{more})"
    return f"{raised}: {'; '.join(found)}."


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
        cells = [_plain(f"{each[c]:.6g} {each['unit']}".strip()) if c in each else "" for c in columns]
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


def _hashed(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def _about(point: Any) -> str:
    try:
        return str(point.load().about)
    except Exception as error:
        return f"cannot be loaded: {error}"
