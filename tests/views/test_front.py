from __future__ import annotations

from collections.abc import Callable

import pytest

from moopt import Constraint, Evaluation, History, Objective
from moopt.views.axes import axes, logarithmic
from moopt.views.front import best_data, front_card, front_data


def test_every_complete_trial_has_one_role(bits: History) -> None:
    table = front_data(bits)
    assert table["trial"].tolist() == [t.number for t in bits.trials if t.state == "complete"]
    assert set(table.loc[table["role"] == "front", "trial"]) == {t.number for t in bits.front()}
    assert set(table.loc[table["role"] == "infeasible", "trial"]) == {
        t.number for t in bits.trials if t.state == "complete" and not t.feasible
    }


def test_no_feasible_trial_dominates_the_front(bits: History) -> None:
    table = front_data(bits)
    feasible, front = table[table["role"] != "infeasible"], table[table["role"] == "front"]
    for _, point in front.iterrows():
        no_worse = (feasible["kl [nats/token]"] <= point["kl [nats/token]"]) & (
            feasible["size_mb [MB]"] <= point["size_mb [MB]"]
        )
        assert feasible.loc[no_worse, "trial"].tolist() == [point["trial"]]


def test_the_known_objective_is_on_x_and_the_measured_one_on_a_logarithmic_y(bits: History) -> None:
    figure = front_card(bits).figure
    assert figure.layout.xaxis.title.text == "size_mb [MB] · lower is better"
    assert figure.layout.yaxis.title.text == "kl [nats/token] · lower is better"
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (None, "log")


def test_the_front_is_a_step_line_and_the_uniform_baselines_are_named(bits: History) -> None:
    traces = {trace.name: trace for trace in front_card(bits).figure.data}
    assert set(traces) == {"dominated", "infeasible", "front", "knapsack", "uniform"}
    assert traces["front"].line.shape == "hv"
    assert list(traces["uniform"].text) == [f"uniform-{b}" for b in (2, 3, 4, 5, 6, 8)]


def test_the_hover_tells_the_trial_and_its_figures_with_units(bits: History) -> None:
    traces = {trace.name: trace for trace in front_card(bits).figure.data}
    told = traces["uniform"].hovertext[0]
    assert told.startswith("<b>trial 0</b> uniform-2<br>kl 11")
    assert "nats/token" in told
    assert "size_mb 61.54 MB" in told
    assert "peak_mb 150 (bound 190 MB)" in told


def test_a_maximised_objective_is_better_higher(builder: Callable) -> None:
    build = builder((Objective("accuracy", "max"), Objective("size_mb", unit="MB", known=True)))
    for size, accuracy in ((10, 0.5), (20, 0.9), (30, 0.8)):
        build.add({"accuracy": accuracy, "size_mb": size})
    table = front_data(build.history)
    assert table["role"].tolist() == ["front", "front", "dominated"]
    card = front_card(build.history)
    assert "the higher the better its accuracy" in card.sentence
    assert card.figure.layout.yaxis.title.text == "accuracy · higher is better"


@pytest.mark.parametrize(("direction", "best"), [("min", [3.0, 3.0, 1.0, 1.0]), ("max", [3.0, 3.0, 3.0, 7.0])])
def test_a_single_objective_shows_the_best_value_so_far(builder: Callable, direction: str, best: list[float]) -> None:
    build = builder((Objective("loss", direction),), (Constraint("ms", 5.0),))
    for value, latency in ((3.0, 1.0), (0.5 if direction == "min" else 9.0, 6.0), (1.0, 1.0), (7.0, 1.0)):
        build.add({"loss": value, "ms": latency})
    assert best_data(build.history)["best"].tolist() == best
    assert front_card(build.history).title == "The best value so far"


def test_a_third_objective_is_told_by_colour(builder: Callable) -> None:
    build = builder((Objective("kl"), Objective("latency", unit="ms"), Objective("size_mb", unit="MB", known=True)))
    for i in range(4):
        build.add({"kl": 4.0 - i, "latency": 1.0 + i % 2, "size_mb": 10.0 + i})
    places = axes(build.history)
    assert (places.x.name, places.y.name, places.colour.name) == ("size_mb", "kl", "latency")
    figure = front_card(build.history).figure
    assert figure.layout.coloraxis.colorbar.title.text == "latency [ms]"
    assert all(trace.line.shape is None for trace in figure.data)


def test_labels_are_not_markup(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0}, label="<b>mine</b> & yours")
    figure = front_card(build.history).figure
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; yours" in figure.data[-1].hovertext[0]


def test_more_families_of_baselines_than_symbols_become_one(builder: Callable) -> None:
    build = builder()
    for i in range(6):
        build.add({"kl": 6.0 - i, "size_mb": 60.0 + i}, label=f"family{i} one")
    assert [trace.name for trace in front_card(build.history).figure.data] == ["front", "baselines"]


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 11], True), ([1, 9], False), ([0, 100], False), ([-1, 100], False), ([], False)]
)
def test_only_positive_values_over_more_than_a_decade_are_logarithmic(values: list[float], expected: bool) -> None:
    assert logarithmic(values) is expected


def test_points_of_the_front_have_the_95_percent_intervals_of_what_was_measured(builder: Callable) -> None:
    build = builder()
    for kl, size in ((0.5, 60.0), (0.01, 80.0), (9.0, 90.0)):
        build.add({"kl": kl, "size_mb": size}).evaluation = Evaluation({"kl": kl}, {"kl": 0.1**2})
    card = front_card(build.history)
    front, dominated = (next(t for t in card.figure.data if t.name == name) for name in ("front", "dominated"))
    assert list(front.error_y.array) == pytest.approx([0.196, 0.196])
    assert list(front.error_y.arrayminus) == pytest.approx([0.196, 0.009])  # the axis is logarithmic and ends above 0
    assert front.error_x.array is None
    assert dominated.error_y.array is None
    assert card.sentence.endswith("bars are 95% intervals of what was measured.")


def test_samples_tell_an_interval_where_no_variance_was_measured(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 2.0, "size_mb": 1.0}).evaluation = Evaluation({"kl": 2.0}, samples={"kl": [1.0, 2.0, 3.0]})
    build.add({"kl": 1.0, "size_mb": 2.0}).evaluation = Evaluation({"kl": 1.0}, samples={"kl": [4.0, 5.0]})
    front = next(trace for trace in front_card(build.history).figure.data if trace.name == "front")
    assert list(front.error_y.array) == pytest.approx([1.96 / 3**0.5, 0.0])  # the second's mean is not its value


def test_without_variances_there_are_no_intervals(bits: History) -> None:
    card = front_card(bits)
    assert "intervals" not in card.sentence
    assert all(trace.error_y.array is None for trace in card.figure.data)
