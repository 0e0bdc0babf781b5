import numpy as np
import pytest

import moopt
from moopt import importance
from moopt.errors import NoFeasibleTrial, StudyError
from moopt.importance import stored_importance
from moopt.testing.landscapes import LEVELS, Landscape
from moopt_problems.synthetic import BitToy


class Mixed(moopt.Problem):
    """A score that a number and a choice add to, and a cost that two decisions have."""

    space = moopt.Space(
        {"x": moopt.Float(0, 1), "kind": moopt.Choice("a", "b"), "n": moopt.Integer(0, 3), "idle": moopt.Integer(0, 50)}
    )
    objectives = (moopt.Objective("score", direction="max"), moopt.Objective("cost", unit="MB", known=True))

    def known(self, config):
        return {"cost": 10.0 * config["n"] + 4.0 * (config["kind"] == "b")}

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"score": 6 * config["x"] + config["n"] + 2.0 * (config["kind"] == "b")})


def test_decisions_of_every_kind_count_in_the_unit_of_the_objective():
    found = moopt.Study("s", Mixed(), "random").run(30).importance()
    assert list(found.columns) == ["score", "cost"]
    assert list(found.index) == ["x", "kind", "n", "idle"]
    assert found["cost"].to_dict() == pytest.approx({"x": 0, "kind": 2, "n": 10 * np.std(range(4)), "idle": 0})
    expected = {"x": 6 * np.std(np.linspace(0, 1, 10)), "kind": 1, "n": np.std(range(4)), "idle": 0}
    assert found["score"].to_dict() == pytest.approx(expected, abs=0.1)


def test_candidates_that_nothing_is_known_of_do_not_count():
    class Partial(Mixed):
        def known(self, config):
            if config["n"] == 0:
                raise ValueError("no cost")
            return super().known(config)

    found = moopt.Study("s", Partial(), "random").run(40).importance()
    assert found["cost"].to_dict() == pytest.approx({"x": 0, "kind": 2, "n": 10 * np.std([1, 2, 3]), "idle": 0})


@pytest.mark.parametrize("sensitivities", [False, "counted"], ids=["learned", "with a prior"])
def test_an_additive_loss_is_told_apart_by_layer(sensitivities):
    problem = BitToy(10, sensitivities=sensitivities)
    found = moopt.Study("s", problem, "random").run(60).importance()
    losses, sizes = (table.std(axis=1) for table in (problem._table, problem.costs() / 8))
    assert found["size"].to_numpy() == pytest.approx(sizes)
    assert found["loss"].to_numpy() == pytest.approx(losses, rel=0.1, abs=0.02 * losses.max())


def test_what_is_stored_tells_the_same_of_what_is_measured():
    study = moopt.Study("s", Mixed(), "random").run(30)
    stored = stored_importance(study.history)
    assert list(stored.columns) == ["score"]
    assert stored["score"].to_numpy() == pytest.approx(study.importance()["score"].to_numpy())


def test_of_many_trials_those_near_the_front_are_enough(monkeypatch: pytest.MonkeyPatch):
    study = moopt.Study("s", Mixed(), "random").run(60)
    monkeypatch.setattr(importance, "MOST_TRIALS", 20)
    assert study.importance()["score"].idxmax() == "x"


def test_too_few_trials_tell_nothing():
    study = moopt.Study("s", Landscape(), "random")
    with pytest.raises(StudyError, match="'s' has 0 completed trials; expected 8 or more"):
        study.importance()
    assert len(study.run(8).importance()) == len(LEVELS)


def test_without_a_front_there_is_nothing_to_look_around():
    with pytest.raises(NoFeasibleTrial, match="no complete and feasible trial"):
        moopt.Study("s", Landscape(constraint="measured", bound=-1.0), "random").run(9).importance()
