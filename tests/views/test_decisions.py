from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moopt import History, Objective
from moopt.views.decisions import decisions_card, decisions_data, layout


def test_decisions_come_by_column_then_row(bits: History) -> None:
    entries = layout(bits)
    assert [entry["column"] for entry in entries] == ["q,k,v"] * 30 + ["o"] * 30 + ["gate,up"] * 30 + ["down"] * 30
    assert [int(entry["row"]) for entry in entries] == list(range(30)) * 4


def test_the_table_holds_the_configurations_of_the_front_by_size(bits: History) -> None:
    table, front = decisions_data(bits), bits.front()
    assert list(table.columns[:2]) == ["decision", "group"]
    assert [str(c).split(":")[0] for c in table.columns[2:]] == [f"trial {t.number}" for t in front]
    for column, trial in zip(table.columns[2:], front, strict=True):
        assert table[column].tolist() == [trial.config[entry["name"]] for entry in layout(bits)]


def test_the_picture_is_the_table_with_gaps_between_groups(bits: History) -> None:
    card = decisions_card(bits)
    heat = next(trace for trace in card.figure.data if trace.type == "heatmap")
    z = np.asarray(heat.z, dtype=float)
    assert z.shape == (123, len(bits.front()))
    gaps = np.isnan(z).all(axis=1)
    assert np.flatnonzero(gaps).tolist() == [30, 61, 92]
    widths = np.array([2, 3, 4, 5, 6, 8])
    assert (widths[z[~gaps].astype(int)] == card.table.iloc[:, 2:].to_numpy(dtype=int)).all()
    assert list(card.figure.layout.coloraxis2.colorbar.ticktext) == ["2", "3", "4", "5", "6", "8"]


def test_the_hover_tells_decision_value_trial_and_objectives(bits: History) -> None:
    heat = next(trace for trace in decisions_card(bits).figure.data if trace.type == "heatmap")
    told = heat.hovertext[0][0]
    assert told.startswith("<b>layer 0 q,k,v: 2</b><br>trial 0 · kl 11")
    assert told.endswith("size_mb 61.54 MB")


def test_choices_are_named_in_a_legend(builder: Callable) -> None:
    build = builder()
    for i, kind in enumerate(("rtn", "hqq", "<gptq>")):
        build.add({"kl": 3.0 - i, "size_mb": 60.0 + i}, {"quantizer": kind, "fused": i > 1})
    figure = decisions_card(build.history).figure
    assert [t.name for t in figure.data if t.name] == ["rtn", "hqq", "&lt;gptq&gt;", "False", "True"]
    assert figure.layout.coloraxis2.showscale is False


def test_ordinals_that_agree_are_drawn_in_their_order(builder: Callable) -> None:
    listed = {"a": ["2", "2+r4", "3"], "b": ["2", "3"], "c": ["2+r4", "2+r8", "3"]}
    for last, ordered in (("3", ["2", "2+r4", "2+r8", "3"]), ("2", None)):
        listed["c"][2] = last
        space = {name: {"kind": "ordinal", "values": values} for name, values in listed.items()}
        build = builder(meta={"identity": {"space": space}})
        for i in range(2):
            build.add({"kl": 3.0 - i, "size_mb": 60.0 + i}, {name: values[i] for name, values in listed.items()})
        bar = decisions_card(build.history).figure.layout.coloraxis2
        assert (list(bar.colorbar.ticktext) == ordered) if ordered else bar.showscale is False


def test_many_values_are_drawn_within_their_own_range(builder: Callable) -> None:
    build = builder()
    for i in range(20):
        build.add({"kl": 20.0 - i, "size_mb": 60.0 + i}, {"x": i / 10, "kind": "ab"[i % 2]})
    heat = next(t for t in decisions_card(build.history).figure.data if t.type == "heatmap")
    z = np.asarray(heat.z, dtype=float)
    np.testing.assert_allclose(z[0], np.linspace(0, 1, 20))
    assert z[1].tolist() == [0.0, 1.0] * 10


def test_without_a_layout_the_configurations_name_the_decisions(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0}, {"b": 4, "a": 2})
    assert [entry["label"] for entry in layout(build.history)] == ["b", "a"]
    assert decisions_card(build.history).applies


def test_without_decisions_the_card_says_so(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 60.0})
    assert decisions_card(build.history).reason == "The configurations have no decisions to draw."


def test_the_front_of_one_objective_is_one_column(builder: Callable) -> None:
    build = builder((Objective("loss"),))
    for value in (3.0, 1.0, 2.0):
        build.add({"loss": value}, {"x": value})
    assert decisions_data(build.history).iloc[:, 2:].to_numpy().tolist() == [[1.0]]
