"""Tasks of EleutherAI's harness as objectives. Runs where it is installed: `make test-clients`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moopt.backend import models
from moopt.backend.merging.tasks import LMEval
from moopt.errors import MetricError

pytestmark = pytest.mark.filterwarnings("default")  # of what the harness imports
pytest.importorskip("lm_eval", reason="lm-eval is not installed; run make test-clients")

QUESTIONS = [
    ("The sky is", ["blue", "zqx"], 0),
    ("Two and two are", ["xvw", "four"], 1),
    ("I drink a cup of", ["tea", "q"], 0),
]
TASK = """
task: sayings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task of our own, with its data."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
    (tmp_path / "sayings.jsonl").write_text("\n".join(lines))
    (tmp_path / "sayings.yaml").write_text(TASK.format(data=tmp_path / "sayings.jsonl"))
    return str(tmp_path)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return models.load_model("smollm2-135m"), models.load_tokenizer("smollm2-135m")


def test_a_figure_of_the_harness_is_a_score(folder: str, loaded: tuple[Any, Any]) -> None:
    task = LMEval("sayings", "sayings", "acc,none", folder=folder)
    found = task.score(*loaded, "search")
    assert found.value == pytest.approx(1.0)
    assert found.count == 3
    assert LMEval("few", "sayings", limit=2, folder=folder).score(*loaded, "search").count == 2


def test_what_the_harness_has_not_is_said(folder: str, loaded: tuple[Any, Any]) -> None:
    with pytest.raises(MetricError, match=r"knows no task 'poems' or in .*; `lm_eval --tasks list` shows all"):
        LMEval("poems", "poems", folder=folder).score(*loaded, "search")
    with pytest.raises(MetricError, match="has no figure 'f1,none'; it has acc,none"):
        LMEval("sayings", "sayings", "f1,none", folder=folder).score(*loaded, "search")
