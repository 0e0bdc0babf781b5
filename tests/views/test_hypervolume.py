from __future__ import annotations

from collections.abc import Callable

import pytest

from moopt import Fidelity, History
from moopt.history import Event
from moopt.jobs import Failure, Job
from moopt.views.hypervolume import hypervolume_card, hypervolume_data


def test_the_curve_never_falls_and_ends_at_the_studys_hypervolume(bits: History) -> None:
    table = hypervolume_data(bits)
    assert table["hypervolume"].is_monotonic_increasing
    assert table["hypervolume"].iloc[-1] == pytest.approx(bits.hypervolume())


def test_every_token_counts_failures_and_sensitivities_too(builder: Callable) -> None:
    build = builder()
    job = Job(-1, {}, "sensitivity", Fidelity(5000, "fisher"))
    build.history.events.append(Event(0, job, Failure("Oops", "no"), 1.0, 5000))
    build.add({"kl": 1.0, "size_mb": 60.0}, tokens=100)
    build.add(Failure("Oops", "no"), tokens=10)
    build.add({"kl": 0.5, "size_mb": 80.0}, tokens=100)
    assert hypervolume_data(build.history)["tokens"].tolist() == [5100, 5110, 5210]


def test_the_end_of_the_baselines_is_marked(bits: History) -> None:
    card = hypervolume_card(bits)
    last = max(t.number for t in bits.trials if t.label)
    end = card.table.set_index("trial").loc[last]
    assert [line.x0 for line in card.figure.layout.shapes] == [end["tokens"], end["trials"], end["seconds"]]


def test_without_tokens_the_trials_are_counted(builder: Callable) -> None:
    build = builder()
    for i in range(3):
        build.add({"kl": 3.0 - i, "size_mb": 60.0 + i}, tokens=0)
    card = hypervolume_card(build.history)
    assert card.figure.layout.xaxis.title.text == "finished trials"
    assert list(card.figure.data[0].x) == [1, 2, 3]


def test_only_rises_are_drawn(bits: History) -> None:
    card = hypervolume_card(bits)
    drawn = card.figure.data[0]
    rises = card.table["hypervolume"].diff().fillna(1.0) > 0
    assert set(drawn.customdata) == {*card.table.loc[rises, "trial"], card.table["trial"].iloc[-1]}
    assert [trace.x[-1] for trace in card.figure.data] == [bits.tokens, len(card.table), card.table["seconds"].iloc[-1]]
