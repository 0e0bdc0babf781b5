from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from moopt import History, Objective
from moopt.views.front import front_card, front_data
from moopt.views.held_out import held_out_card, held_out_data
from moopt.views.uniform import findings, uniform_card, uniform_data


def overfitted(builder: Callable, meta: dict | None = None) -> History:
    """A search whose point at 88 MB beats uniform-4 on the search data and loses on validation data."""
    build = builder(meta=meta)
    build.add({"kl": 1.2, "size_mb": 75.0}, label="uniform-3", held_out={"kl": 1.25})
    build.add({"kl": 0.33, "size_mb": 88.0}, label="uniform-4", held_out={"kl": 0.34}, validated={"kl": 0.35})
    build.add({"kl": 0.90, "size_mb": 74.0}, held_out={"kl": 1.00})
    build.add({"kl": 0.30, "size_mb": 88.0}, validated={"kl": 0.41})
    return build.history


def test_what_a_baseline_replaced_is_named(builder: Callable) -> None:
    history = overfitted(builder)
    table = held_out_data(history)
    assert table["trial"].tolist() == [2, 1]
    assert table["replaces"].tolist() == ["", "trial 3"]
    sentence = held_out_card(history).sentence
    assert sentence.endswith(
        "1 of 2 points of the front was replaced by a baseline that did better on validation data; "
        "1 is still to be checked."
    )
    assert front_data(history)["role"].tolist() == ["dominated", "front", "front", "replaced"]
    assert "replaced" in [trace.name for trace in front_card(history).figure.data]


def test_held_out_data_selects_nothing(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 0.33, "size_mb": 88.0}, label="uniform-4", held_out={"kl": 0.1})
    build.add({"kl": 0.30, "size_mb": 88.0}, held_out={"kl": 0.4})
    assert held_out_data(build.history)["trial"].tolist() == [1]
    assert "replaced" not in held_out_card(build.history).sentence


def test_the_table_has_the_held_out_figures_by_size(bits: History) -> None:
    table = held_out_data(bits)
    assert all(a <= b for a, b in pairwise(table["size_mb [MB]"]))
    for _, row in table.iterrows():
        measured = bits.measures[row["trial"], "held-out"].values
        assert row["kl held-out [nats/token]"] == measured["kl"]
        assert row["top1_agreement held-out"] == measured["top1_agreement"]


def test_the_front_is_compared_with_every_uniform_baseline_by_the_value_the_search_saw(builder: Callable) -> None:
    table = uniform_data(overfitted(builder))
    assert table["baseline"].tolist() == ["uniform-3", "uniform-4"]
    assert table["the front's point"].tolist() == ["trial 2", "trial 1, uniform-4"]
    assert table["better by [%]"].tolist() == pytest.approx([20.0, 0.0])


def test_no_comparison_takes_more_of_the_known_objective(bits: History) -> None:
    table = uniform_data(bits)
    assert table["baseline"].tolist() == [f"uniform-{b}" for b in (2, 3, 4, 5, 6, 8)]
    assert (table["size_mb [MB]"] <= table["its size_mb [MB]"]).all()
    assert (table["better by [%]"] >= 0).all()


def test_findings_say_it_in_words(builder: Callable) -> None:
    assert findings(overfitted(builder)) == ["At the size of uniform-3 the front's kl is 20% lower (held-out)."]


def test_more_is_better_for_a_maximised_objective(builder: Callable) -> None:
    build = builder((Objective("accuracy", "max"), Objective("size_mb", unit="MB", known=True)))
    build.add({"accuracy": 0.5, "size_mb": 80.0}, label="uniform-3", held_out={"accuracy": 0.5})
    build.add({"accuracy": 0.7, "size_mb": 80.0}, held_out={"accuracy": 0.6})
    assert findings(build.history) == ["At the size of uniform-3 the front's accuracy is 20% higher (held-out)."]


@pytest.mark.parametrize(
    ("label", "held_out", "reason"),
    [
        ("uniform-4", None, "The front and the baselines are not measured on held-out data yet."),
        ("greedy", {"kl": 1.0}, 'The study has no feasible baseline whose name starts with "uniform".'),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(
    builder: Callable, label: str, held_out: dict[str, float] | None, reason: str
) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0}, label=label, held_out=held_out)
    assert uniform_card(build.history).reason == reason


def test_without_a_known_objective_there_is_no_size_to_compare_at(builder: Callable) -> None:
    build = builder((Objective("loss"), Objective("time")))
    build.add({"loss": 1.0, "time": 2.0}, label="uniform-4", held_out={"loss": 1.0, "time": 2.0})
    assert uniform_card(build.history).reason.startswith("No objective is known exactly")
