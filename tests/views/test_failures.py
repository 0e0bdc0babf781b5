from __future__ import annotations

from collections.abc import Callable

from moopt import Fidelity, History
from moopt.history import Event
from moopt.jobs import Failure, Job
from moopt.views.failures import failures_card, failures_data


def test_failures_are_counted_by_reason_the_most_frequent_first(builder: Callable) -> None:
    build = builder()
    for reason in ("rare", "often", None, "often", "often"):
        build.add(Failure("Oops", reason) if reason else {"kl": 1.0, "size_mb": 1.0})
    build.history.events.append(Event(99, Job(2, {}, "measure", Fidelity(1, "held-out")), Failure("Oops", "often")))
    table = failures_data(build.history)
    assert table.to_numpy().tolist() == [
        ["evaluate", "Oops", "often", 3, 1, 4],
        ["evaluate", "Oops", "rare", 1, 0, 0],
        ["measure", "Oops", "often", 1, 2, 2],
    ]


def test_each_failed_trial_is_marked_in_the_line_of_its_reason(bits: History) -> None:
    figure = failures_card(bits).figure
    failed = [trial.number for trial in bits.trials if trial.state == "failed"]
    assert list(figure.data[0].customdata) == failed
    assert figure.layout.annotations[0].text.startswith(f"<b>{len(failed)} ×</b> killed: the worker died")


def test_reasons_are_text(builder: Callable) -> None:
    build = builder()
    build.add(Failure("Oops", "<script>alert(1)</script>"))
    assert "<script" not in failures_card(build.history).figure.to_json().replace("\\u003c", "<")


def test_a_study_without_failures_says_so(builder: Callable) -> None:
    build = builder()
    build.add({"kl": 1.0, "size_mb": 1.0})
    assert failures_card(build.history).reason == "Nothing has failed."
