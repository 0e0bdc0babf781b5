from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from moopt import Constraint, Evaluation, History, Objective
from moopt.views import cards
from moopt.views.elites import elites_card, elites_data, elites_map

SIZE, LOSS = Objective("size_mb", unit="MB", known=True), Objective("loss")


def settings(*descriptors: dict, quality: str | None = None) -> dict:
    return {
        "identity": {"algorithm": {"algorithm": "MAPElites", "descriptors": descriptors or None, "quality": quality}}
    }


@pytest.fixture
def filled(builder: Callable) -> History:
    build = builder((LOSS, SIZE), (Constraint("ms", 5.0, "ms"),), settings({"name": "size_mb", "bins": 2}))
    for loss, size, ms in ((3.0, 0.0, 1.0), (2.0, 4.0, 1.0), (1.0, 4.5, 9.0), (0.1, 10.0, 1.0), (0.5, 6.0, 1.0)):
        build.add({"loss": loss, "size_mb": size, "ms": ms}, {"x": size})
    return build.history


def test_a_cell_holds_its_best_feasible_trial(filled: History) -> None:
    assert {cell: trial.number for cell, trial in elites_map(filled).elites.items()} == {(0,): 1, (1,): 3}


def test_the_table_says_from_where_to_where(filled: History) -> None:
    table = elites_data(elites_map(filled))
    assert table.to_dict("records") == [
        {"size_mb from": 0.0, "size_mb to": 5.0, "trial": 1, "loss": 2.0},
        {"size_mb from": 5.0, "size_mb to": 10.0, "trial": 3, "loss": 0.1},
    ]


def test_more_is_better_where_the_quality_is_maximised(builder: Callable) -> None:
    build = builder((Objective("accuracy", "max"), SIZE), (), settings({"name": "size_mb", "bins": 1}))
    for accuracy in (0.1, 0.9, 0.5):
        build.add({"accuracy": accuracy, "size_mb": accuracy}, {})
    assert elites_map(build.history).elites[0,].number == 1


def test_with_three_sides_the_picture_shows_the_best_over_the_third(builder: Callable) -> None:
    sides = [{"name": name, "low": 0.0, "high": 1.0, "bins": 2} for name in ("size_mb", "a", "b")]
    build = builder((LOSS, SIZE), (), settings(*sides))
    for loss, size, a, b in ((3.0, 0.1, 0.1, 0.1), (2.0, 0.1, 0.1, 0.9), (5.0, 0.9, 0.9, 0.9)):
        trial = build.add({"loss": loss, "size_mb": size}, {})
        trial.evaluation = Evaluation({"loss": loss}, attributes={"a": a, "b": b})
    card = elites_card(build.history)
    assert len(card.table) == 3
    assert json.loads(card.figure.to_json())["data"][0]["z"] == [[2.0, None], [None, 5.0]]


def test_a_trial_without_what_the_map_spans_is_said(builder: Callable) -> None:
    build = builder((LOSS, SIZE), (), settings({"name": "speed"}))
    build.add({"loss": 1.0, "size_mb": 1.0}, {})
    assert "'speed' is None" in elites_card(build.history).reason


def test_the_card_is_shown_where_map_elites_searched(filled: History, bits: History) -> None:
    assert "The best in each cell" in [card.title for card in cards(filled)]
    assert "The best in each cell" not in [card.title for card in cards(bits)]
