from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moopt import History
from moopt.views.pairs import pairs_card
from moopt.views.solid import seen, solid_card
from tests.views.histories import written


def of_three(history: History) -> list[tuple[object, ...]]:
    return [(t.number, t.values["kl"], t.values["size_mb"], t.values["accuracy"]) for t in history.front()]


def test_each_pair_of_objectives_has_one_picture_of_the_whole_front() -> None:
    history = written(60, 3)
    front = of_three(history)
    expected = [
        ("size_mb", "kl", [(n, size, kl) for n, kl, size, _ in front]),
        ("size_mb", "accuracy", [(n, size, accuracy) for n, _, size, accuracy in front]),
        ("kl", "accuracy", [(n, kl, accuracy) for n, kl, _, accuracy in front]),
    ]
    traces = [trace for trace in pairs_card(history).figure.data if is_front(trace)]
    found = [list(zip(trace.customdata, trace.x, trace.y, strict=True)) for trace in traces]
    assert found == [points for _, _, points in expected]
    assert len({trace.xaxis + trace.yaxis for trace in traces}) == 3


def test_five_objectives_have_ten_pictures_and_each_line_and_column_is_named_once() -> None:
    figure = pairs_card(written(60, 5)).figure
    assert sum(map(is_front, figure.data)) == 10
    titles = [figure.layout[axis].title.text for axis in figure.layout if axis[1:5] == "axis"]
    assert sorted(filter(None, titles)) == sorted(
        ["size_mb", "kl", "accuracy", "latency_ms", "kl", "accuracy", "latency_ms", "memory_mb"]
    )


def is_front(trace: Any) -> bool:
    """Whether it draws points of the front, not their key in the legend."""
    return trace.name == "front" and trace.customdata is not None


def test_fewer_objectives_have_neither_pairs_nor_space() -> None:
    assert pairs_card(written(20, 2)) is None
    assert solid_card(written(20, 2)) is None


def test_the_whole_front_is_in_space_from_two_corners() -> None:
    history = written(60, 3)
    traces = [trace for trace in solid_card(history).figure.data if is_front(trace)]
    assert [list(trace.customdata) for trace in traces] == [[t.number for t in history.front()]] * 2
    assert all(list(trace.marker.color) == [t.values["accuracy"] for t in history.front()] for trace in traces)
    assert all(trace.type == "scatter" for trace in solid_card(history).figure.data)  # no WebGL


def test_what_is_seen_keeps_upright_lines_upright_and_lengths_within_one() -> None:
    cube = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    for turn in (-32.0, 0.0, 58.0):
        flat = seen(cube, turn)
        assert flat[0::2, 0] == pytest.approx(flat[1::2, 0])
        apart = np.linalg.norm(flat[:, None] - flat[None], axis=2)
        assert (apart <= np.linalg.norm(cube[:, None] - cube[None], axis=2) + 1e-12).all()
    assert seen(cube, 0.0)[:, 0] == pytest.approx(cube[:, 0])
