from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import moopt
from moopt.testing.landscapes import Landscape
from moopt.views.workers import spans, workers_card, workers_data
from tests.views.histories import written

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_evaluations_at_the_same_time_are_in_lanes_of_their_own(builder: Callable) -> None:
    build = builder()
    for began, seconds in ((0, 4), (1, 2), (3, 3), (4, 1), (9, 1)):
        trial = build.add({"kl": 1.0, "size_mb": 1.0})
        trial.seconds, trial.ended = float(seconds), START + timedelta(seconds=began + seconds)
    found = spans(build.history)
    assert [(s.trial.number, s.lane, s.start, s.end) for s in found] == [
        (0, 0, 0.0, 4.0), (1, 1, 1.0, 3.0), (2, 1, 3.0, 6.0), (3, 0, 4.0, 5.0), (4, 0, 9.0, 10.0),
    ]  # fmt: skip
    assert workers_data(build.history)["began"].iloc[-1] == "2026-01-01 00:00:09 UTC"


@pytest.mark.parametrize("place", [None, "s.journal", "s.sqlite3"])
def test_a_study_that_ran_knows_when(place: str | None, tmp_path: Any) -> None:
    before = datetime.now(UTC)
    where = place and str(tmp_path / place)
    where = f"sqlite:///{where}" if place == "s.sqlite3" else where
    study = moopt.Study("s", Landscape(behaviour="flaky"), "random", where, seed=0).run(12)
    history = study.history if where is None else moopt.load_history(where)
    ended = [trial.ended for trial in history.trials]
    assert ended == sorted(ended)
    assert before - timedelta(seconds=1) <= ended[0] <= ended[-1] <= datetime.now(UTC) + timedelta(seconds=1)
    card = workers_card(history)
    assert card.applies
    assert {trace.name for trace in card.figure.data} == {"complete", "failed"}


def test_very_many_evaluations_are_joined(large: moopt.History) -> None:
    traces = {trace.name: trace for trace in workers_card(large).figure.data}
    assert len(traces["complete"].x) < 3 * sum(trial.feasible for trial in large.trials)
    assert traces["complete"].hovertext is None
    few = {trace.name: trace for trace in workers_card(written(40)).figure.data}
    assert set(few["failed"].customdata) - {None} == {19, 39}


def test_without_times_a_study_says_so(bits: moopt.History) -> None:
    assert "have no times" in workers_card(bits).reason
