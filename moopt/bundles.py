"""A study as one file that somebody else can check: what was run, with what, and what was found.

A bundle is a zip file: the study's trials in a journal, the file that defines it if there is one, and `bundle.json`,
which says how the study is built, what versions and data it had, what its models may be used for, and a hash of each
file. Reproducing a trial runs the bundle's own Python file: do it with bundles of people whose code you would run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from moopt import __version__, identity
from moopt.errors import BundleError
from moopt.history import History, Trial
from moopt.problem import Problem, Resources
from moopt.storage import Storage
from moopt.study import Study, load_history, passive
from moopt.whole import whole_file

MANIFEST, JOURNAL = "bundle.json", "study.journal"
LARGEST = 1 << 30
"""Bytes of a file in a bundle, at most."""
SHAPES = (KeyError, TypeError, ValueError, AttributeError)
"""What a manifest of another shape raises."""
CLOSE = 0.01
"""How far a figure may be from what was stored, as a share of it: machines round differently."""


def write(study: Study, target: str, changes: Sequence[str], path: Path) -> dict[str, Any]:
    """Write a study as a bundle.

    Args:
        study: The study, with trials.
        target: How it was named: a file with a name in it, a module, or an installed problem.
        changes: What was changed of it, as `--set` takes it.
        path: The zip file; there must be nothing yet.

    Returns:
        What `bundle.json` says.

    Raises:
        BundleError: there is something at the path, or nothing to bundle.
    """
    path = path.expanduser()
    if os.path.lexists(path):
        raise BundleError(f"{path} exists already; give a path where there is nothing.")
    history = study.history
    if not history.trials:
        raise BundleError(f"The study {study.name!r} has no trials yet; run it first.")
    where, colon, name = target.partition(":")
    files: dict[str, bytes] = {JOURNAL: _journal(study)}
    if where.endswith(".py"):
        source = Path(where)
        files[source.name], target = source.read_bytes(), f"{source.name}{colon}{name}"
    manifest = {
        "study": study.name,
        "trials": len(history.trials),
        "target": target,
        "changes": list(changes),
        "identity": history.meta["identity"],
        "environment": history.meta["environment"],
        "platform": platform.platform(),
        "versions": versions(),
        "licences": licences(study.problem),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    with _written(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for name, data in files.items():
            archive.writestr(name, data)
    return manifest


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror or error}.") from error


class Figure(NamedTuple):
    """A figure of a trial, as it was stored and as it is found again.

    Attributes:
        name: The objective.
        where: On what: "search", "validation" or "held-out".
        stored: What the bundle has.
        found: What is found here.
    """

    name: str
    where: str
    stored: float
    found: float

    @property
    def verdict(self) -> str:
        """What that means: "same" to the last digit, "close" but for rounding, or "differs"."""
        if self.found == self.stored or (math.isnan(self.found) and math.isnan(self.stored)):
            return "same"
        return "close" if abs(self.found - self.stored) <= CLOSE * abs(self.stored) else "differs"


class Reproduced(NamedTuple):
    """A trial that was evaluated again.

    Attributes:
        trial: Its number.
        figures: What was stored and found.
        changed: What is installed here in another version: theirs, and the one here.
    """

    trial: int
    figures: list[Figure]
    changed: dict[str, tuple[str, str]]


def reproduce(path: Path, trial: int, resources: Resources | None = None) -> Reproduced:
    """Build a bundle's study again and evaluate one of its trials.

    Args:
        path: The bundle.
        trial: The number of a completed trial.
        resources: The device and the threads.

    Raises:
        BundleError: it is none, was altered, or has no such trial.
        StudyMismatch: the problem that it builds here is another one: names what differs, a model's weights say.
    """
    from moopt.cli_targets import chosen

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = _opened(path, folder)
        history = load_history(folder / JOURNAL, manifest["study"])
        target = manifest["target"]
        if target.partition(":")[0].endswith(".py"):
            target = str(folder / target)
        with passive():  # the file may run its study as it is read
            study = chosen(target, manifest["changes"])
        identity.compare_problems(study.name, history.meta, study.meta())
        wanted = _completed(history, trial)
        study.problem.setup(resources or Resources())
        figures = list(_figures(study.problem, history, wanted))
    here = versions()
    theirs: Mapping[str, str] = manifest["versions"]
    changed = {name: (v, here.get(name, "missing")) for name, v in theirs.items() if here.get(name) != v}
    return Reproduced(trial, figures, changed)


def versions() -> dict[str, str]:
    """The versions of Python, of moopt, and of all that is installed that it requires."""
    found = {"python": platform.python_version(), "moopt": __version__}
    for requirement in importlib.metadata.requires("moopt") or ():
        name = requirement.split(";")[0].split("[")[0].rstrip("<>=!~0123456789., ")
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def licences(problem: Problem) -> dict[str, str]:
    """What a problem is made of, and the licence of each, as far as its files say."""
    told = getattr(problem, "licences", None)
    return dict(told()) if callable(told) else {}


def _journal(study: Study) -> bytes:
    """The study alone, as a journal file."""
    opened = study.storage if study.storage.location is None else Storage(study.storage.location)
    if opened.location is not None:
        opened.open()
    assert opened.optuna is not None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / JOURNAL
        backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(place)))
        optuna.copy_study(from_study_name=study.name, from_storage=opened.optuna, to_storage=backend)
        return place.read_bytes()


def _opened(path: Path, folder: Path) -> dict[str, Any]:
    """Unpack a bundle, every file of it checked; what its manifest says."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
            files: Mapping[str, str] = manifest["files"]
            for name, digest in files.items():
                if archive.getinfo(name).file_size > LARGEST:
                    raise BundleError(f"{path} was altered: {name} is larger than any bundle's.")
                data = archive.read(name)
                if Path(name).name != name or hashlib.sha256(data).hexdigest() != digest:
                    raise BundleError(f"{path} was altered: {name} is not what was bundled.")
                (folder / name).write_bytes(data)
            {key: manifest[key] for key in ("study", "target", "changes")}, dict(manifest["versions"])
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, *SHAPES) as error:
        raise BundleError(
            f"{path} is no bundle that can be read ({error}); expected what moopt bundle wrote."
        ) from error
    return manifest


def _completed(history: History, number: int) -> Trial:
    found = {trial.number: trial for trial in history.trials if trial.state == "complete"}
    if number not in found:
        raise BundleError(f"{history.name!r} has no completed trial {number}; it has {len(history.trials)} trials.")
    return found[number]


def _figures(problem: Problem, history: History, trial: Trial) -> Iterator[Figure]:
    """What is found of a trial again; times are left out, which no two machines have in common."""
    known = problem.known(trial.config)
    again = {**problem.evaluate(trial.config, problem.fidelity).values, **known}
    for objective in history.objectives:
        if not objective.unit.startswith("ms"):
            yield Figure(objective.name, "search", float(trial.values[objective.name]), float(again[objective.name]))
    for purpose, fidelity in problem.measurements.items():
        stored = history.measures.get((trial.number, purpose))
        if stored is not None and purpose not in problem.exclusive:
            found = problem.evaluate(trial.config, fidelity).values
            for name, value in stored.values.items():
                if name in found:
                    yield Figure(name, purpose, float(value), float(found[name]))
