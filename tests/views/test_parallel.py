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
    lines = card.figure.data
    assert len(lines) == 4
    assert "trial 0" in lines[0].hovertext
    np.testing.assert_allclose([line.y[0] for line in lines], [0, 1 / 3, 2 / 3, 1])  # over decades: by the logarithm
    np.testing.assert_allclose([line.y[1] for line in lines], [0, 1 / 3, 2 / 3, 1])


def test_the_better_end_is_on_top(three: History) -> None:
    lines = parallel_card(three).figure.data
    assert [line.y[2] for line in lines] == pytest.approx([1, 2 / 3, 1 / 3, 0])  # the smallest size
    texts = [each.text for each in parallel_card(three).figure.layout.annotations]
    assert "<b>accuracy</b><br>higher is better" in texts
    assert "0.001" in texts


def test_of_a_large_front_some_lines_are_drawn(builder: Callable) -> None:
    build = builder(OBJECTIVES)
    for i in range(400):
        build.add({"kl": 500.0 - i, "accuracy": 0.5, "size_mb": 60.0 + i})
    card = parallel_card(build.history)
    assert len(card.table) == 400
    assert 100 < len(card.figure.data) <= 150


def test_one_point_and_no_point_are_shown_or_explained(builder: Callable) -> None:
    build = builder(OBJECTIVES)
    assert "No trial" in parallel_card(build.history).reason
    build.add({"kl": 1.0, "accuracy": 0.5, "size_mb": 60.0})
    assert parallel_card(build.history).figure is not None


def test_two_objectives_need_none(bits: History) -> None:
    assert parallel_card(bits) is None
    assert TITLE not in [card.title for card in cards(bits)]
