from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moopt import History, Objective
from moopt.views import cards
from moopt.views.parallel import TITLE, parallel_card

OBJECTIVES = (Objective("kl"), Objective("accuracy", "max"), Objective("size_mb", unit="MB", known=True))


@pytest.fixture
def three(builder: Callable) -> History:
    build = builder(OBJECTIVES)
    for i in range(4):
        build.add({"kl": 10.0**-i, "accuracy": 0.5 + i / 10, "size_mb": 60.0 + i})
    build.add({"kl": 9.0, "accuracy": 0.1, "size_mb": 99.0})
    return build.history


def test_every_point_of_the_front_is_a_line_over_all_objectives(three: History) -> None:
    card = parallel_card(three)
    assert card is not None
    assert card.table["trial"].tolist() == [0, 1, 2, 3]
    lines = card.figure.data[0]
    assert [each.label for each in lines.dimensions] == ["kl", "accuracy", "size_mb [MB]"]
    np.testing.assert_allclose(lines.dimensions[0]["values"], [0, -1, -2, -3])  # over decades: their logarithms
    assert lines.dimensions[0].ticktext[0] == "0.001"
    assert list(lines.line.color) == [60, 61, 62, 63]


def test_the_better_end_is_on_top(three: History) -> None:
    ranges = [each.range for each in parallel_card(three).figure.data[0].dimensions]
    assert [low < high for low, high in ranges] == [False, True, False]


def test_one_point_and_no_point_are_shown_or_explained(builder: Callable) -> None:
    build = builder(OBJECTIVES)
    assert "No trial" in parallel_card(build.history).reason
    build.add({"kl": 1.0, "accuracy": 0.5, "size_mb": 60.0})
    assert parallel_card(build.history).figure is not None


def test_two_objectives_need_none(bits: History) -> None:
    assert parallel_card(bits) is None
    assert TITLE not in [card.title for card in cards(bits)]
