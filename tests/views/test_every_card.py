from __future__ import annotations

import json

import pytest

from moopt import History
from moopt.history import Trial
from moopt.views import cards, comparison, decisions, views
from moopt.views.front import MOST_DRAWN, front_card
from moopt.views.importance import importance_card
from tests.views.histories import written

FROM_THREE = {"solid", "pairs", "parallel"}
"""Cards for three objectives and more."""


def own(history: History) -> dict[str, object]:
    return {name: view for name, view in views(history).items() if not name.startswith("plugin")}


@pytest.mark.parametrize("trials", [0, 1, 100])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_every_card_shows_something_or_says_why_not(m: int, trials: int) -> None:
    history = written(trials, m, decisions=12)
    for name, view in own(history).items():
        card = view(history)
        assert (card is None) == (name in FROM_THREE and m < 3), name
        if card is None:
            continue
        assert card.title
        assert card.sentence.endswith("."), name
        assert ". " not in card.sentence, name
        assert not card.applies or len(card.table), name
        if card.figure is not None:
            assert json.loads(card.figure.to_json())["data"], name
        if trials == 0 and name != "run":
            assert card.reason == "No trial has been started yet.", name


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_with_a_hundred_trials_nothing_is_missing(m: int) -> None:
    history = written(100, m, decisions=12, odd=False)
    history.trials[50].state = "failed"
    reasons = {card.title: card.reason for card in cards(history) if not card.applies}
    assert set(reasons) <= {"What failed", "Against uniform"}, reasons


def test_a_trial_of_which_nothing_is_known_breaks_no_card() -> None:
    history = written(30, 2, decisions=12)
    history.trials += [Trial(30, {}), Trial(31, {"layer0": 2}, state="failed"), Trial(32, {}, state="pruned")]
    assert all(card.applies or card.reason for card in cards(history))


def test_a_large_study_fills_every_card_and_stays_light(large: History) -> None:
    for name, view in own(large).items():
        card = view(large)
        assert card is not None, name
        assert card.applies, name
        if card.figure is not None:
            assert len(card.figure.to_json()) < 1.5e6, name


def test_a_large_front_shows_all_of_the_front_and_some_of_the_rest(large: History) -> None:
    traces = {trace.name.split(",")[0]: trace for trace in front_card(large).figure.data if trace.customdata}
    assert list(traces["front"].customdata) == [trial.number for trial in large.front()]
    assert MOST_DRAWN / 2 < len(traces["dominated"].x) <= MOST_DRAWN
    assert traces["dominated"].name == "dominated, 1 in 4"


def test_of_a_front_of_very_many_points_some_decisions_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MOST_COLUMNS", 40)
    history = written(400, 5, decisions=12)
    front = history.front()
    card = decisions.decisions_card(history)
    assert f"40 of the {len(front)} points are shown" in card.sentence
    drawn = list(card.figure.data[0].meta["columns"])
    assert len(drawn) == 40
    assert (drawn[0], drawn[-1]) == (front[0].number, front[-1].number)


def test_a_large_study_tells_what_its_importance_has_seen(large: History) -> None:
    card = importance_card(large)
    assert "the model has seen the 80 nearest to the front" in card.sentence
    assert len(card.table) == 120
    assert "seen" not in importance_card(written(60, 2)).sentence


@pytest.mark.parametrize("trials", [0, 1, 100])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_studies_of_any_size_can_be_compared(m: int, trials: int) -> None:
    for card in comparison([written(trials, m, decisions=12, seed=seed) for seed in (0, 1)]):
        assert card.sentence.endswith(".")
        assert ". " not in card.sentence
        assert card.reason or len(card.table)
        assert card.figure is None or card.figure.to_json()
