from __future__ import annotations

from collections import Counter

import moopt
from moopt.algorithms import Ladder
from moopt.testing.landscapes import Landscape, Sequences
from moopt.views.spending import spending_card, spending_data
from moopt_problems.synthetic import BitToy


def test_all_tokens_and_seconds_are_in_one_line_or_another() -> None:
    history = moopt.Study("s", Sequences(), Ladder("nsga2"), seed=0).run(40).history
    table = spending_data(history)
    assert table["work"].tolist() == ["screens on 1 token", "screens on 4 tokens", "evaluations"]
    assert table["forward tokens"].sum() == history.tokens
    assert table["seconds"].sum() == sum(event.seconds for event in history.events)
    assert table["jobs"].sum() == sum(event.outcome is not None for event in history.events)


def test_each_candidate_of_a_rung_goes_on_or_is_pruned() -> None:
    history = moopt.Study("s", Sequences(), Ladder("nsga2"), seed=0).run(40).history
    table = spending_data(history).set_index("work")
    states = Counter(trial.state for trial in history.trials)
    assert states["pruned"] > 0
    assert table["pruned"].sum() == states["pruned"]
    screens = table.loc[["screens on 1 token", "screens on 4 tokens"]]
    waiting = screens["jobs"] - screens["went on"] - screens["pruned"]
    assert (waiting >= 0).all()
    assert waiting.sum() == states["running"]
    drawn = [trace for trace in spending_card(history).figure.data if trace.name in ("went on", "pruned")]
    assert sum(sum(trace.x) for trace in drawn) == screens[["went on", "pruned"]].to_numpy().sum()


def test_what_comes_before_the_trials_and_what_failed_count() -> None:
    history = moopt.Study("s", BitToy(6, sensitivities="counted"), "qnehvi").run(12).history
    assert spending_data(history)["work"].tolist()[0] == "sensitivities"
    flaky = moopt.Study("s", Landscape(behaviour="flaky"), "random").run(30).history
    table = spending_data(flaky)
    assert table["failed"].tolist() == [sum(trial.state == "failed" for trial in flaky.trials)]
    assert "went on" not in table


def test_without_tokens_only_seconds_are_drawn() -> None:
    card = spending_card(moopt.Study("s", Landscape(), "random").run(5).history)
    assert len(card.figure.data) == 1
    assert card.figure.layout.xaxis.title.text == "seconds"
