from __future__ import annotations

from collections.abc import Callable

import pytest

from moopt import Constraint, History, Objective, Study
from moopt.jobs import Failure
from moopt.testing.landscapes import Landscape
from moopt.views.shipping import COMMAND, GAIN, KNEE, RIVAL, WANTED, budgets, shipping_card, shipping_data


def test_each_budget_gets_what_pick_gives(bits: History) -> None:
    table = shipping_data(bits).set_index(WANTED)
    assert table.loc[KNEE, "trial"] == bits.knee().number
    assert budgets(bits) == [70, 80, 90, 100, 110, 120, 130, 140, 150]
    for budget in budgets(bits):
        assert table.loc[f"at most {budget:g} MB", "trial"] == bits.pick(f"size_mb <= {budget}").number
    assert len(table) == 1 + len(budgets(bits))


def test_budgets_with_the_same_point_are_one_line(builder: Callable) -> None:
    build = builder()
    for kl, size in ((0.9, 70.0), (0.1, 95.0), (0.01, 140.0)):
        build.add({"kl": kl, "size_mb": size})
    table = shipping_data(build.history)
    assert table[WANTED].tolist() == [KNEE, "at most 70 to 90 MB", "at most 100 to 130 MB", "at most 140 MB"]
    assert table["trial"].tolist()[1:] == [0, 1, 2]


def test_nothing_feasible_within_a_budget_is_better(bits: History) -> None:
    table = shipping_data(bits)
    feasible = {trial.number: trial for trial in bits.trials if trial.feasible}
    for budget, number in zip(budgets(bits), table["trial"][1:], strict=True):
        within = [t.values["kl"] for t in feasible.values() if t.values["size_mb"] <= budget]
        assert feasible[number].values["kl"] == min(within)
        assert feasible[number].values["size_mb"] <= budget


def test_the_gain_is_over_the_best_uniform_baseline_within_the_budget(bits: History) -> None:
    line = shipping_data(bits).set_index(WANTED).loc["at most 90 MB"]
    uniform = next(t for t in bits.trials if t.label == "uniform-4")
    theirs = bits.measures[uniform.number, "held-out"].values["kl"]
    ours = bits.measures[line["trial"], "held-out"].values["kl"]
    assert line[RIVAL] == "uniform-4 (88.01 MB)"
    assert line["its kl held-out [nats/token]"] == theirs
    assert line[GAIN] == pytest.approx(100 * (theirs - ours) / theirs)


def test_a_baseline_that_is_the_best_gains_nothing_over_itself(bits: History) -> None:
    last = shipping_data(bits).iloc[-1]
    assert bits.trials[last["trial"]].label == "uniform-8"
    assert last[RIVAL].startswith("uniform-8")
    assert last[GAIN] == 0


def test_the_command_exports_the_trial(bits: History) -> None:
    table = shipping_data(bits)
    assert [f" --trial {n} " in command for n, command in zip(table["trial"], table[COMMAND], strict=True)]
    assert table[COMMAND].str.startswith("moopt export STUDY --trial ").all()


def test_infeasible_and_failed_trials_are_never_offered(builder: Callable) -> None:
    build = builder(constraints=(Constraint("ms", 5.0, "ms"),))
    build.add({"kl": 0.1, "size_mb": 71.0, "ms": 9.0})
    build.add({"kl": 0.9, "size_mb": 72.0, "ms": 5.0})
    build.add(Failure("error", "no"))
    build.add({"kl": 0.5, "size_mb": 88.0, "ms": 1.0})
    assert set(shipping_data(build.history)["trial"]) == {1, 3}


def test_values_the_search_saw_are_told_where_held_out_ones_are_missing(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0}, label="uniform-4", held_out={"kl": 1.1})
    build.add({"kl": 0.5, "size_mb": 81.0})
    table = shipping_data(build.history)
    assert "kl held-out [nats/token]" not in table
    assert table["kl [nats/token]"].tolist()[-1] == 0.5
    assert table[GAIN].tolist()[-1] == 50


def test_without_baselines_nothing_is_compared(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0})
    assert RIVAL not in shipping_data(build.history)
    assert GAIN not in shipping_data(build.history)


def test_a_maximised_objective_is_bounded_from_below(builder: Callable) -> None:
    build = builder((Objective("accuracy", "max", "%"), Objective("ms")))
    for accuracy, ms in ((91.0, 9.0), (84.0, 4.0), (72.0, 1.0)):
        build.add({"accuracy": accuracy, "ms": ms})
    assert budgets(build.history) == [90, 85, 80, 75, 70]
    table = shipping_data(build.history).set_index(WANTED)
    assert table.loc["at least 85 to 90 %", "trial"] == 0
    assert table.loc["at least 75 to 80 %", "trial"] == 1
    assert table["trial"].tolist()[-1] == 2


def test_budgets_over_many_decades_are_one_a_decade(builder: Callable) -> None:
    build = builder()
    for i in range(9):
        build.add({"kl": float(9 - i), "size_mb": 3.0 * 10**i})
    assert budgets(build.history) == [10.0**i for i in range(1, 10)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
def test_any_number_of_objectives_has_the_card(objectives: int) -> None:
    study = Study("s", Landscape(objectives=objectives), "random", seed=3).run(trials=30)
    card = shipping_card(study.history)
    assert set(card.table["trial"]) <= {t.number for t in study.history.front()}
    assert len(card.table) == 1 if objectives == 1 else len(card.table) > 1


def test_before_anything_is_feasible_the_card_says_so(builder: Callable) -> None:
    assert shipping_card(builder().history).reason == "No trial has been started yet."
