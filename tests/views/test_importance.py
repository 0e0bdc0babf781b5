from __future__ import annotations

from collections.abc import Callable

import moopt
from moopt import Fidelity, History, Objective
from moopt.views.importance import importance_card
from moopt_problems.synthetic import BitToy


class Known(moopt.Problem):
    space = moopt.Space({"bits": moopt.Ordinal(2, 4, 8), "kind": moopt.Choice("a", "b", "c")})
    objectives = (Objective("size", known=True), Objective("speed", "max", known=True))

    def known(self, config: moopt.Config) -> dict[str, float]:
        return {"size": config["bits"], "speed": 1.0 / config["bits"]}

    def evaluate(self, config: moopt.Config, fidelity: Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({})


def test_the_most_important_comes_first_in_the_table_and_in_the_picture(bits: History) -> None:
    card = importance_card(bits)
    moved = card.table["moves kl [nats/token] by"]
    assert len(moved) == 120
    assert moved.is_monotonic_decreasing
    assert sum(len(trace.y) for trace in card.figure.data) == 30
    assert [trace.name for trace in card.figure.data] == ["q,k,v", "o", "gate,up", "down"]
    drawn = {trace.hovertext[0].split("<br>")[0]: trace for trace in card.figure.data}
    assert f"<b>{card.table['decision'][0]}</b>" in drawn


def test_a_study_without_groups_has_bars_of_one_colour() -> None:
    study = moopt.Study("s", BitToy(8, sensitivities=False), "random").run(30)
    card = importance_card(study.history)
    assert len(card.figure.data) == 1
    assert not card.figure.layout.showlegend
    assert card.table["decision"].tolist() == study.importance()["loss"].sort_values(ascending=False).index.tolist()


def test_a_card_that_cannot_be_made_says_why(builder: Callable) -> None:
    few = moopt.Study("s", BitToy(3), "random").run(5)
    assert "5 completed trials; expected 8 or more" in importance_card(few.history).reason
    exact = moopt.Study("s", Known(), "random").run(8)
    assert "measures no objective" in importance_card(exact.history).reason
    build = builder((Objective("kl"),))
    for i in range(9):
        build.add({"kl": float(i)}, {"x": i})
    assert "stored without its space" in importance_card(build.history).reason
