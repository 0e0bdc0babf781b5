"""What every exporter must do. Subclass `ExporterSuite` in a test module; pytest collects its tests."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import pytest

import moopt
from moopt import exporting
from moopt.errors import ExportError, MooptError
from moopt.exporting import CARD, MANIFEST, Compared, Exporter, Written
from moopt.problem import Problem
from moopt.space import Config
from moopt.testing.landscapes import Misbehaving

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
"""Endings of files that may run code when they are read."""


class Made(NamedTuple):
    """A candidate that was written.

    Attributes:
        problem: What was searched.
        config: The candidate.
        folder: Where it is.
        written: What the exporter said of it.
    """

    problem: Problem
    config: Config
    folder: Path
    written: Written


class ExporterSuite:
    """Tests of the contract in `moopt.exporting`. Override `format` and the fixture `subject`."""

    format: str
    """The name of the format, registered by the entry point `moopt.exporters`."""

    @pytest.fixture
    def subject(self) -> tuple[Problem, Config]:
        """A problem, and a candidate of it that the format holds."""
        raise NotImplementedError

    @pytest.fixture
    def made(self, subject: tuple[Problem, Config], tmp_path: Path) -> Made:
        """The candidate, written."""
        folder = tmp_path / "made"
        folder.mkdir()
        return Made(*subject, folder, self.exporter().write(*subject, folder))

    def exporter(self) -> Exporter:
        """The exporter under test."""
        return exporting.exporter(self.format)

    def test_it_is_found_by_its_name_and_says_who_reads_it(self) -> None:
        assert self.exporter().name == self.format
        assert exporting.formats()[self.format] == self.exporter().about != ""

    def test_the_size_is_what_was_said(self, made: Made) -> None:
        weights = sum(file.stat().st_size for file in files(made.folder) if file.suffix in (".safetensors", ".gguf"))
        assert made.written.size == pytest.approx(weights, rel=1e-3, abs=1 << 16)

    def test_nothing_that_is_written_can_run_code_or_leads_elsewhere(self, made: Made) -> None:
        found = files(made.folder)
        assert found
        assert not [file for file in found if file.suffix in PICKLES or file.is_symlink()]
        assert not {CARD, MANIFEST} & {file.name for file in made.folder.iterdir()}  # those are written beside

    def test_the_same_candidate_gives_the_same_bytes(self, made: Made, tmp_path: Path) -> None:
        again = tmp_path / "again"
        again.mkdir()
        self.exporter().write(made.problem, made.config, again)
        assert hashes(again) == hashes(made.folder)

    def test_commands_name_the_folder(self, made: Made) -> None:
        assert all("{path}" in command for command in made.written.serve)

    def test_other_problems_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError):
            self.exporter().write(Misbehaving(), {"n": 0, "act": "fine"}, tmp_path)

    def test_raising_gives_a_candidate_that_is_written_or_says_why_not(self, made: Made, tmp_path: Path) -> None:
        try:
            raised = self.exporter().raised(made.problem, made.config)
        except ExportError:
            return
        made.problem.space.validate(raised)
        (tmp_path / "raised").mkdir()
        self.exporter().write(made.problem, raised, tmp_path / "raised")

    def test_a_study_exports_it_whole_and_what_was_altered_is_refused(self, made: Made, tmp_path: Path) -> None:
        study = moopt.Study("export", made.problem, "random").run(trials=1)
        study.history.trials[0].config = dict(made.config)
        found = study.export(0, self.format, tmp_path / "out")
        assert exporting.read(found.path).manifest == found.manifest
        written = [file for file in files(found.path) if file.name not in (CARD, MANIFEST)]
        altered = max(written, key=lambda file: file.stat().st_size)
        altered.write_bytes(altered.read_bytes()[:-1])
        with pytest.raises(ExportError, match="is not what was exported"):
            exporting.read(found.path)

    def test_measuring_gives_numbers_or_says_why_not(self, made: Made) -> None:
        compared = made.written.compared or Compared("", "mix", 1, 1)
        try:
            found = self.exporter().measure(made.folder, compared)
        except MooptError:
            return
        assert found
        assert all(math.isfinite(value) for value in found.values())


def files(folder: Path) -> list[Path]:
    """All files under a folder, in order."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def hashes(folder: Path) -> dict[str, str]:
    """What every file under a folder holds, by its name there."""
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files(folder)}
