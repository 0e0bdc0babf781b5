"""Cards of keys and values: two lines a layer, whatever was decided together; and of what came before the search."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moopt
from moopt.backend.kv import Pair, Profile, cluster, prune
from moopt.report import write_cards, write_report
from moopt.views import cards
from moopt_problems import KVCachePrecision
from moopt_problems.kv_cards import groups_card, pairs_card, profile_card, pruning_card
from moopt_problems.synthetic import BitToy

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0, "profile_tokens": 64,
}  # fmt: skip


@pytest.mark.parametrize("groups", ["layers", "pruned", {"0-1": ["KV8", "K4V2", "KV2"]}])
def test_the_front_has_two_lines_a_layer(tiny: Path, tmp_path: Path, groups: Any) -> None:
    problem = KVCachePrecision(str(tiny), groups=groups, **SMALL)
    study = moopt.Study("kv", problem, "random").run(trials=6)
    card = pairs_card(study.history)
    assert card is not None
    front = study.history.front()
    assert card.table["layer"].tolist() == [0, 1]
    for column, trial in zip(card.table.columns[1:], front, strict=True):
        assert [Pair.of(pair) for pair in card.table[column]] == problem.pairs(trial.config)
    assert card.figure is not None
    assert list(card.figure.data[0].y) == ["0 K", "0 V", "1 K", "1 V"]
    assert np.array(card.figure.data[0].z).shape == (4, len(front))
    assert "The bits of keys and values" in write_report(study.history, tmp_path / "r.html").read_text()


def test_other_studies_have_no_such_card() -> None:
    study = moopt.Study("toy", BitToy(3), "random").run(trials=4)
    assert pairs_card(study.history) is None
    assert all("keys and values" not in card.title for card in cards(study.history))


def test_a_study_without_trials_says_so(tiny: Path) -> None:
    card = pairs_card(moopt.Study("kv", KVCachePrecision(str(tiny), groups="layers", **SMALL), "random").history)
    assert card is not None
    assert "No trial" in card.reason


def test_the_steps_of_kvtuner_are_shown(tmp_path: Path) -> None:
    pairs = tuple(map(Pair.of, ("KV2", "K4V2", "KV4")))
    errors = np.array([[0.4, 0.2, 0.1], [0.41, 0.2, 0.1], [0.1, 0.2, 0.1]])
    profile = Profile(pairs, *[0 * errors] * 5, errors)
    pruned = prune(profile)
    groups = cluster(profile, pruned)
    shown = [profile_card(profile), pruning_card(profile, pruned), groups_card(groups)]
    assert shown[0].table["K4V2"].tolist() == [0.2, 0.2, 0.2]
    assert shown[1].table[["KV2", "K4V2", "KV4"]].to_numpy().tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert shown[2].table.to_numpy().tolist() == [["0-1", 2, "KV2, K4V2, KV4"], ["2", 1, "KV2"]]
    text = write_cards(shown, tmp_path / "steps.html", "Steps").read_text()
    assert all(card.title in text for card in shown)
