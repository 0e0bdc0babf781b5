from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import moopt
from moopt import Objective
from moopt.algorithms import Ladder, SequentialKnapsack
from moopt.algorithms.modelled import Modelled
from moopt.testing.landscapes import Landscape, Sequences
from moopt.views.predictions import predictions_card, predictions_data, quality
from moopt_problems.synthetic import BitToy


def foretelling(build: Any, predictions: Sequence[Sequence[float]], measured: Sequence[float], variance: float) -> Any:
    """A history with these predictions of one objective."""
    for value, predicted in zip(measured, predictions, strict=True):
        trial = build.add({"loss": value}, {"x": 1})
        trial.evaluation = moopt.Evaluation({"loss": value}, {"loss": variance})
        issued = build.history.events[-2]
        job = replace(issued.job, note={"predicted": {"loss": list(predicted)}})
        build.history.events[-2] = replace(issued, job=job)
    return build.history


def test_a_value_is_inside_by_the_beliefs_and_the_measurements_error_together(builder: Callable) -> None:
    predictions, measured = [(2.0, 3.0, 4.0)] * 3, (3.9, 4.2, 6.0)
    exact = foretelling(builder((Objective("loss"),)), predictions, measured, 0.0)
    assert predictions_data(exact)["inside"].tolist() == [True, False, False]
    noisy = foretelling(builder((Objective("loss"),)), predictions, measured, 0.5**2)
    assert predictions_data(noisy)["inside"].tolist() == [True, True, False]


def test_the_rank_correlation_is_of_order_alone(builder: Callable) -> None:
    predictions = [(v, v, v) for v in (1.0, 2.0, 3.0, 4.0)]
    same = foretelling(builder((Objective("loss"),)), predictions, (10.0, 20.0, 80.0, 81.0), 0.0)
    assert quality(predictions_data(same)) == (0.0, 1.0)
    reverse = foretelling(builder((Objective("loss"),)), predictions, (4.0, 3.0, 2.0, 1.0), 0.0)
    assert quality(predictions_data(reverse))[1] == -1.0


def test_a_search_with_a_model_is_drawn_as_it_predicted() -> None:
    history = moopt.Study("s", BitToy(8), "qnehvi", seed=0).run(30).history
    table = predictions_data(history)
    assert table["trial"].is_monotonic_increasing
    assert table["trial"].iloc[-1] == 29
    assert set(table["objective"]) == {"loss"}  # the size is known
    assert (table["from"] <= table["predicted"]).all()
    assert (table["predicted"] <= table["to"]).all()
    inside, ranks = quality(table)
    assert inside > 0.7
    assert ranks > 0.8
    card = predictions_card(history)
    assert f"{int(table['inside'].sum())} of {len(table)} values of loss" in card.sentence
    points = card.figure.data[1]
    assert list(points.x) == table["predicted"].tolist()
    assert list(points.y) == [history.trials[n].values["loss"] for n in points.customdata]


def test_a_maximised_objective_is_predicted_in_its_own_sign() -> None:
    history = moopt.Study("s", Landscape(), "qnehvi", seed=0).run(20).history
    table = predictions_data(history)
    second = table[table["objective"] == "f1"]  # less than 0, and maximised
    assert (second["measured"] <= 0).all()
    assert (second["predicted"] < 0.05).all()
    assert quality(second)[1] > 0.5


def test_predictions_survive_a_ladder_and_a_storage(tmp_path: Any) -> None:
    path = tmp_path / "s.journal"
    study = moopt.Study("s", Sequences(6), Ladder("qnehvi"), path, seed=0).run(25)
    stored = predictions_data(moopt.load_history(path))
    assert len(stored) > 3
    assert stored.equals(predictions_data(study.history))


@pytest.mark.parametrize("algorithm", ["qnehvi", "surrogate-evolution"])
def test_what_is_told_changes_no_proposal(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Landscape(known=True)
    told = moopt.Study("told", problem, algorithm, seed=3).run(24).history
    assert len(predictions_data(told))
    monkeypatch.setattr(Modelled, "foretold", lambda self, jobs, beliefs: list(jobs))
    untold = moopt.Study("untold", problem, algorithm, seed=3).run(24).history
    assert predictions_data(untold).empty
    assert [trial.config for trial in told.trials] == [trial.config for trial in untold.trials]


def test_a_search_without_a_model_says_so() -> None:
    history = moopt.Study("s", Landscape(), "random").run(5).history
    assert "uses no model" in predictions_card(history).reason


class Tabled(BitToy):
    sensitivity = moopt.Fidelity(0, "exact")


def test_a_table_predicts_without_an_interval() -> None:
    history = moopt.Study("s", Tabled(10, interaction=50.0), "sequential-knapsack").run(20).history
    table = predictions_data(history)
    assert table["inside"].isna().all()
    assert quality(table)[1] > 0.8
    card = predictions_card(history)
    assert "95%" not in card.sentence
    assert "inside" not in card.figure.layout.annotations[-1].text
    assert " to " not in card.figure.data[1].hovertext[-1].split("predicted")[1]


def test_the_sum_of_a_table_is_what_is_expected_where_decisions_are_independent() -> None:
    table = predictions_data(moopt.Study("s", BitToy(10), SequentialKnapsack()).run(30).history)
    table = table[table["inside"].isna()]  # the rest is a model's
    assert len(table) >= 3
    np.testing.assert_allclose(table["predicted"], table["measured"], rtol=0.05)
