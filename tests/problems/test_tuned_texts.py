"""Models tuned to kinds of text: made once, whole or not at all, and fit to be merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from moopt.backend import models
from moopt.backend.merging import Merger, Recipe
from moopt.errors import ProblemError
from moopt_problems.synthetic import tuned_texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tuned for two short steps, in a cache of the test's own; the base is that of the real one."""
    base = models.location(tuned_texts.MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_texts, "STEPS", 2)
        patch.setattr(tuned_texts, "TOKENS", 128)
        patch.setattr(tuned_texts, "MODEL", str(base))
        patch.setenv("MOOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = tuned_texts.tuned(["code"])
        assert tuned_texts.tuned(["code"]) == found
        assert len(list(Path(found["code"]).parent.iterdir())) == 1
    return found


def test_a_tuned_model_loads_and_merges_with_its_base(folders: dict[str, str]):
    merger = Merger({"code": folders["code"], "same": folders["base"]}, folders["base"])
    whole = {m: {"": 1.0 if m == "code" else 0.0} for m in ("code", "same")}
    recipe = Recipe("task_arithmetic", whole, {m: {"": 1.0} for m in whole}, "model", 1.0, 0)
    model = models.unfilled(folders["base"], models.load_model(folders["base"]).dtype)
    assert 0 < merger.fill(model, recipe) < 0.1


def test_kinds_that_there_are_not_are_refused():
    with pytest.raises(ProblemError, match="expected some of prose, docstrings, code"):
        tuned_texts.tuned(["poems"])


def test_there_is_a_task_for_each_kind():
    assert [task.name for task in tuned_texts.tasks(["prose", "code"])] == ["prose", "code"]
