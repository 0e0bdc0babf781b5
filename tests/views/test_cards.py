from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint

import pandas as pd
import pytest

from moopt import Constraint, History, Objective, views
from moopt.jobs import Failure
from moopt.views import Card, cards, summary
from moopt.views.run import run_data


def test_the_main_case_fills_every_card(bits: History) -> None:
    shown = cards(bits)
    assert [card.title for card in shown] == [
        "What to ship",
        "The front",
        "What the front decided",
        "Which decisions matter",
        "Against uniform",
        "All points of the front",
        "Progress of the search",
        "How well the search predicts",
        "What the budget went into",
        "When it ran",
        "What failed",
        "What was run",
    ]
    missing = {card.title for card in shown if not card.applies}
    assert missing == {"How well the search predicts", "When it ran"}  # it has no model, and was never run
    assert all(not card.table.empty for card in shown if card.applies)


def test_a_cards_sentence_is_one_sentence(bits: History) -> None:
    for card in cards(bits):
        assert card.sentence.endswith(".")
        assert ". " not in card.sentence


def test_an_empty_study_says_that_nothing_has_been_started() -> None:
    shown = cards(History("nothing", [Objective("loss")]))
    assert {card.reason for card in shown[:-1]} == {"No trial has been started yet."}
    assert shown[-1].applies


def test_a_study_whose_trials_all_failed_says_so(builder: Callable) -> None:
    build = builder()
    for _ in range(3):
        build.add(Failure("killed", "out of memory"), {"x": 1})
    shown = {card.title: card for card in cards(build.history)}
    reasons = {card.reason for card in shown.values() if not card.applies}
    untimed = "The study's trials have no times: none has ended, or none was noted."
    assert reasons == {"No trial is complete yet: 3 failed.", untimed}
    assert {title for title, card in shown.items() if card.applies} == {
        "What the budget went into", "What failed", "What was run",
    }  # fmt: skip
    assert ["failed 3 times", "killed: out of memory"] in shown["What was run"].table.to_numpy().tolist()


def test_infeasible_trials_are_drawn_and_never_reported(builder: Callable) -> None:
    build = builder(constraints=(Constraint("ms", 5.0, "ms"),))
    build.add({"kl": 1.0, "size_mb": 60.0, "ms": 9.0}, {"x": 1}, label="uniform-4", held_out={"kl": 1.0})
    shown = {card.title: card for card in cards(build.history)}
    assert shown["The front"].table["role"].tolist() == ["infeasible"]
    assert shown["All points of the front"].reason == "None of the 1 complete trials satisfies the constraints."


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_any_number_of_objectives_can_be_drawn(builder: Callable, n: int) -> None:
    build = builder(tuple(Objective(name, "max" if i % 2 else "min") for i, name in enumerate("abcd"[:n])))
    for i in range(5):
        build.add({name: float((i * 7 + j * 3) % 5) for j, name in enumerate("abcd"[:n])}, {"x": i})
    assert all(card.figure.to_json() for card in cards(build.history) if card.figure is not None)


def test_the_run_card_has_what_is_needed_to_run_it_again(bits: History) -> None:
    lines = dict(run_data(bits).to_numpy().tolist())
    assert lines["algorithm"] == "NSGA2"
    assert lines["algorithm: population"] == "20"
    assert lines["seed"] == "0"
    assert lines["environment: python"] == "3.12.3"
    assert lines["trials"] == "60 complete, 3 failed"
    assert lines["forward tokens"] == f"{bits.tokens:,}"
    assert lines["reference point"].startswith("kl ")


def test_the_summary_is_plain_words(bits: History) -> None:
    first, meaning, found = summary.lines(bits)
    assert first == (
        "A candidate is 120 decisions, each one of 2, 3, 4, 5, 6 or 8. "
        "NSGA2 tried 63 candidates in search of low kl and low size."
    )
    assert meaning == "Measured: kl in nats/token, lower is better; known exactly: size in MB, lower is better."
    assert found.startswith(f"{len(bits.front())} candidates are on the front")


def test_plug_ins_add_cards_and_cannot_break_the_others(bits: History, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, f"{__name__}:{name}", views.GROUP) for name in ("wrong", "mine", "broken")]
    monkeypatch.setattr(EntryPoint, "load", lambda point: globals()[point.name])
    monkeypatch.setattr(views, "entry_points", lambda group: points)
    shown = {card.title: card for card in cards(bits)}
    assert shown["mine"].table["trials"].tolist() == [63]
    assert shown["broken"].reason == f"The plug-in {__name__}:broken failed: ZeroDivisionError: division by zero."
    assert "it gave str, expected moopt.views.Card" in shown["wrong"].reason
    assert list(shown)[-1] == "What was run"


def mine(history: History) -> Card:
    return Card("mine", "How many trials there are.", pd.DataFrame({"trials": [len(history.trials)]}))


def broken(history: History) -> Card:
    raise ZeroDivisionError("division by zero")


def wrong(history: History) -> str:
    return history.name


def test_views_and_report_import_no_models() -> None:
    code = (
        "import sys, moopt.report; "
        "assert not {'torch', 'transformers', 'moopt.backend', 'moopt_kernels', 'moopt_problems'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("module", ["kv_cards", "merge_cards"])
def test_cards_of_problems_need_no_models_either(module: str) -> None:
    code = f"import sys, moopt_problems.{module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
