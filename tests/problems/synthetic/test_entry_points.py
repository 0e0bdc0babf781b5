"""Every problem that is registered by name can be made by it."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import moopt
from moopt.cli_targets import problem, with_settings
from moopt.errors import MooptError

PROJECT = tomllib.loads((Path(moopt.__file__).parents[1] / "pyproject.toml").read_text())
NAMES = PROJECT["project"]["entry-points"]["moopt.problems"]


OF_MODELS = {"bit-allocation", "kv-cache"}


@pytest.mark.parametrize("name", sorted(OF_MODELS))
def test_problems_of_models_ask_for_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(key, value, "moopt.problems") for key, value in NAMES.items()]
    monkeypatch.setattr("moopt.cli_targets.entry_points", lambda group: points)
    with pytest.raises(MooptError, match="needs model: give --set model=VALUE"):
        problem(name)


@pytest.mark.parametrize("name", sorted(set(NAMES) - OF_MODELS))
def test_a_registered_name_makes_a_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(key, value, "moopt.problems") for key, value in NAMES.items()]
    monkeypatch.setattr("moopt.cli_targets.entry_points", lambda group: points)
    assert isinstance(problem(name), moopt.Problem)


def test_settings_follow_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_settings("bit-toy@layers=100,bits=2,4,8") == ("bit-toy", {"layers": 100, "bits": (2, 4, 8)})
    assert with_settings("dtlz2") == ("dtlz2", {})
    points = [EntryPoint(key, value, "moopt.problems") for key, value in NAMES.items()]
    monkeypatch.setattr("moopt.cli_targets.entry_points", lambda group: points)
    assert len(problem("dtlz2@variables=6,objectives=2").space) == 6
    assert len(problem("bit-toy@layers=7").space) == 7
