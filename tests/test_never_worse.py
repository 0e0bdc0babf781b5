"""The rule that no shown point is worse than a baseline of its size: when it fires, what it measures and says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import moopt
from moopt.cli import app
from moopt.errors import NoFeasibleTrial
from moopt.never_worse import VALIDATION
from moopt.report import front_csv, write_report

ONE_REPLACED = "1 of 3 points of the front was replaced by a baseline that did better on validation data."


class Tricks(moopt.Problem):
    """Three sizes and a trick that always lowers the loss on the search's sequences, but not on others.

    Of 8 bits it lowers that of every sequence alike, else that of half of them alone, so that it may be luck.

    Args:
        luck: The sizes at which it was luck: on other data the trick raises the loss.
        samples: Whether evaluations tell the loss of each sequence.
        measurements: What there is to measure at the end.
    """

    space = moopt.Space({"bits": moopt.Ordinal(2, 4, 8), "trick": moopt.Ordinal(0, 1, 2, 3)})
    objectives = (moopt.Objective("loss"), moopt.Objective("size", unit="MB", known=True))
    fidelity = moopt.Fidelity(600)

    def __init__(
        self, luck: Sequence[int] = (4,), samples: bool = True, measurements: Sequence[str] = ("held-out", "validation")
    ) -> None:
        self.luck, self.samples = tuple(luck), samples
        self.measurements = {purpose: moopt.Fidelity(100) for purpose in measurements}
        self.validated: list[tuple[int, int]] = []
        self.interrupted_at = -1

    def known(self, config: moopt.Config) -> dict[str, float]:
        return {"size": float(config["bits"])}

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"uniform-{bits}": {"bits": bits, "trick": 0} for bits in (2, 4, 8)}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        bits, trick = config["bits"], config["trick"]
        if isinstance(fidelity.batch, str):
            if fidelity.batch == VALIDATION:
                if len(self.validated) == self.interrupted_at:
                    self.interrupted_at = -1
                    raise KeyboardInterrupt
                self.validated.append((bits, trick))
            return moopt.Evaluation({"loss": 1 / bits + 0.01 * trick * (1 if bits in self.luck else -1)})
        effect = np.ones(6) if bits == 8 else np.tile([4.0, -2.0], 3)
        losses = 1 / bits - 0.01 * trick * effect
        return moopt.Evaluation(
            {"loss": float(losses.mean())}, samples={"loss": losses.tolist()} if self.samples else None
        )


def studied(problem: moopt.Problem, trials: int = 12, storage: Path | None = None) -> moopt.Study:
    return moopt.Study("s", problem, "random", storage).run(trials)


def shown(history: moopt.History) -> list[tuple[int, int]]:
    return [(trial.config["bits"], trial.config["trick"]) for trial in history.front()]


def test_a_point_that_loses_on_validation_data_is_replaced_by_its_baseline(tmp_path: Path) -> None:
    study = studied(Tricks(), storage=tmp_path / "s.journal")
    assert [(t.config["bits"], t.config["trick"]) for t in study.history.nondominated()] == [(2, 3), (4, 3), (8, 3)]
    assert shown(study.history) == shown(moopt.load_history(tmp_path / "s.journal")) == [(2, 3), (4, 0), (8, 3)]
    assert study.front()["baseline"].tolist() == ["", "uniform-4", ""]
    assert str(study.history.verdict()) == ONE_REPLACED


def test_a_point_that_holds_on_validation_data_stays() -> None:
    history = studied(Tricks(luck=())).history
    assert shown(history) == [(2, 3), (4, 3), (8, 3)]
    assert str(history.verdict()) == (
        "0 of 3 points of the front were replaced by baselines that did better on validation data."
    )


def test_only_what_the_search_leaves_in_doubt_is_measured_on_validation_data() -> None:
    problem = Tricks()
    studied(problem)
    assert sorted(problem.validated) == [(2, 0), (2, 3), (4, 0), (4, 3)]  # at 8 bits every sequence gained the same
    problem = Tricks(samples=False)
    studied(problem)
    assert sorted(problem.validated) == [(2, 0), (2, 3), (4, 0), (4, 3), (8, 0), (8, 3)]


def test_held_out_figures_are_of_what_is_shown_and_select_nothing() -> None:
    class Unlucky(Tricks):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            found = super().evaluate(config, fidelity)
            return moopt.Evaluation({"loss": float(config["trick"])}) if fidelity.batch == "held-out" else found

    history = studied(Unlucky()).history
    held_out = [history.trials[n].config for n, purpose in history.measures if purpose == "held-out"]
    assert sorted((c["bits"], c["trick"]) for c in held_out) == [(2, 0), (2, 3), (4, 0), (8, 0), (8, 3)]
    assert shown(history) == [(2, 3), (4, 0), (8, 3)]


def test_what_is_picked_is_never_worse_either() -> None:
    study = studied(Tricks())
    assert study.pick("size <= 4").label == "uniform-4"
    assert study.pick("size <= 2").config == {"bits": 2, "trick": 3}
    assert study.pick("loss <= 0.24").config["bits"] == 8  # uniform-4 does not reach that, and stands for 4 bits
    with pytest.raises(NoFeasibleTrial, match="No trial of 's' satisfies"):
        study.pick("loss <= 0.24 and size <= 4")
    assert study.knee().number in study.front().index


def test_a_problem_without_validation_data_is_as_it_was() -> None:
    problem = Tricks(measurements=["held-out"])
    history = studied(problem).history
    assert problem.validated == []
    assert history.front() == history.nondominated()
    assert history.pick("size <= 4").config["trick"] == 3
    assert history.verdict() is None


def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path: Path) -> None:
    problem = Tricks()
    problem.interrupted_at = 2
    with pytest.raises(KeyboardInterrupt):
        studied(problem, storage=tmp_path / "s.journal")
    history = moopt.load_history(tmp_path / "s.journal")
    assert {purpose for _, purpose in history.measures} == {VALIDATION}
    assert str(history.verdict()).endswith("did better on validation data; 1 is still to be checked.")
    resumed = studied(problem, storage=tmp_path / "s.journal").history
    assert str(resumed.verdict()) == ONE_REPLACED
    assert len(problem.validated) == len(set(problem.validated)) == 4
    assert resumed.measures == studied(Tricks()).history.measures


def test_with_more_trials_the_front_is_checked_again(tmp_path: Path) -> None:
    problem = Tricks()
    studied(problem, 5, tmp_path / "s.journal")
    assert len(problem.validated) < 4
    history = studied(problem, 12, tmp_path / "s.journal").history
    assert shown(history) == [(2, 3), (4, 0), (8, 3)]
    assert len(problem.validated) == len(set(problem.validated))


def test_the_command_line_and_the_report_say_what_was_replaced(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        found = CliRunner().invoke(app, [*arguments])
        assert found.exit_code == 0, found.output
        return found.stdout

    storage = str(tmp_path / "s.journal")
    ran = told("run", f"{__file__}:Tricks", "--algorithm", "random", "--trials", "12", "--storage", storage)
    assert ONE_REPLACED in ran
    assert ONE_REPLACED in told("front", storage)
    document = json.loads(told("front", storage, "--json"))
    history = moopt.load_history(storage)
    (replaced,) = document["never_worse"].pop("replaced")
    assert document["never_worse"] == {"points": 3, "unchecked": 0}
    assert history.trials[replaced["trial"]].config == {"bits": 4, "trick": 3}
    assert replaced["by"] in [point["trial"] for point in document["front"]]
    assert ONE_REPLACED in write_report(history, tmp_path / "report.html").read_text()
    assert ",uniform-4," in front_csv(history, tmp_path / "front.csv").read_text()


OBJECTIVES = (moopt.Objective("accuracy", "max"), moopt.Objective("ms"), moopt.Objective("size", known=True))
figures = st.integers(0, 4).map(float)


def given_history(rows: list[tuple[tuple[float, float, float], bool, tuple[float, float] | None]]) -> moopt.History:
    """Trials with what the search saw, whether they are baselines, and what they have on validation data."""
    history = moopt.History("s", OBJECTIVES)
    for number, (values, baseline, validated) in enumerate(rows):
        found = dict(zip(("accuracy", "ms", "size"), values, strict=True))
        label = f"uniform-{number}" if baseline else None
        history.trials.append(moopt.Trial(number, {}, "complete", found, label=label))
        if validated is not None:
            history.measures[number, VALIDATION] = moopt.Evaluation(
                dict(zip(("accuracy", "ms"), validated, strict=True))
            )
    return history


def beats(history: moopt.History, baseline: moopt.Trial, trial: moopt.Trial) -> bool:
    """By the words of the rule."""
    if (baseline.number, VALIDATION) not in history.measures or (trial.number, VALIDATION) not in history.measures:
        return False
    own, other = (history.measures[t.number, VALIDATION].values for t in (trial, baseline))
    at_least = other["accuracy"] >= own["accuracy"] and other["ms"] <= own["ms"]
    return baseline.values["size"] <= trial.values["size"] and at_least and other != own


@given(
    st.lists(
        st.tuples(st.tuples(figures, figures, figures), st.booleans(), st.none() | st.tuples(figures, figures)),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_no_shown_or_picked_point_loses_to_a_baseline(rows: list) -> None:
    history = given_history(rows)
    front, replaced = history.front(), history.replaced()
    picked = [history.pick(f"size <= {size}") for size in {t.values["size"] for t in history.trials}]
    for trial in (*front, *picked):
        assert not any(beats(history, baseline, trial) for baseline in history.baselines())
        assert trial.number not in replaced
    for trial in history.nondominated():
        heir = replaced.get(trial.number, trial)
        assert any((history.values([shown]) <= history.values([heir])).all() for shown in front)
        if trial.number in replaced and (trial.number, VALIDATION) in history.measures:
            assert beats(history, heir, trial)  # what was not measured there shares a loser's fate


def test_a_baseline_that_is_better_in_one_of_two_measured_objectives_replaces_nothing() -> None:
    point, baseline = ((0.9, 2.0, 1.0), False, (0.5, 2.0)), ((0.8, 3.0, 1.0), True, (0.7, 3.0))
    assert given_history([point, baseline]).replaced() == {}


def test_an_objective_that_validation_does_not_measure_counts_as_the_search_saw_it() -> None:
    history = given_history([((0.9, 2.0, 1.0), False, None), ((0.8, 3.0, 1.0), True, None)])
    for number, accuracy in ((0, 0.5), (1, 0.7)):
        history.measures[number, VALIDATION] = moopt.Evaluation({"accuracy": accuracy})
    assert history.replaced() == {}
    history.trials[1].values["ms"] = 2.0
    assert history.replaced() == {0: history.trials[1]}


def test_a_baseline_that_violates_a_constraint_replaces_nothing() -> None:
    history = given_history([((0.9, 2.0, 1.0), False, (0.5, 2.0)), ((0.8, 2.0, 1.0), True, (0.7, 2.0))])
    assert list(history.replaced()) == [0]
    history.trials[1].violations = {"peak": 1.0}
    assert history.replaced() == {}


def test_a_baseline_takes_the_place_of_a_loser_only_where_nothing_else_is_better() -> None:
    loser, better = ((0.7, 2.0, 10.0), False, (0.45, 2.0)), ((0.69, 2.0, 9.0), False, (0.65, 2.0))
    history = given_history([((0.5, 2.0, 9.5), True, (0.50, 2.0)), loser, better])
    assert list(history.replaced()) == [1]
    assert history.front() == [history.trials[2]]
    assert history.pick("size <= 10") == history.trials[2]


def test_what_one_trial_lacks_on_validation_data_does_not_excuse_others() -> None:
    history = given_history([((0.9, 2.0, 1.0), False, (0.5, 2.0)), ((0.8, 2.0, 1.0), True, (0.7, 2.0))])
    history.trials.append(moopt.Trial(2, {}, "complete", dict(accuracy=0.1, ms=9.0, size=9.0)))
    history.measures[2, VALIDATION] = moopt.Evaluation({"other": 1.0})
    assert history.replaced()[0] == history.trials[1]


def test_what_was_hidden_behind_a_replaced_point_does_not_take_its_place() -> None:
    rows = [((0.9, 2.0, 1.0), False, (0.5, 2.0)), ((0.8, 2.0, 1.0), False, None), ((0.7, 2.0, 1.0), True, (0.7, 2.0))]
    history = given_history(rows)
    assert history.front() == [history.trials[2]]
    assert history.pick("size <= 1") == history.trials[2]
