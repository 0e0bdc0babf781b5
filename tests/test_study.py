import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2, QNEHVI, EvoPress, OptunaSampler, Random, SequentialKnapsack
from moopt.errors import (
    AlgorithmError,
    BudgetError,
    CapabilityError,
    MooptError,
    NoFeasibleTrial,
    ProblemError,
    StudyError,
    StudyMismatch,
)
from moopt.space import Float, Simplex, Space
from moopt.testing.landscapes import LEVELS, MIXED, TINY, Landscape
from moopt_problems.synthetic import BitToy

ROOT = Path(moopt.__file__).parents[1]

ALGORITHMS = {
    "nsga2": lambda: NSGA2(6),
    "random": Random,
    "optuna": lambda: OptunaSampler("nsga2"),
}
TABLED = {**ALGORITHMS, "sequential-knapsack": SequentialKnapsack}
"""For problems with costs and gradients."""


class Counted(BitToy):
    """Counts what is evaluated; begins with its sensitivities."""

    sensitivity = moopt.Fidelity(100, "exact")

    def __init__(self, layers: int = 5, **arguments: object):
        super().__init__(layers, **arguments)  # type: ignore[arg-type]
        self.evaluated: list[tuple] = []

    def evaluate(self, config, fidelity):
        self.evaluated.append(self.space.key(config))
        return super().evaluate(config, fidelity)


def log(study: moopt.Study) -> list:
    """What a study did, but for the seconds it took."""
    return [(e.seq, e.job, e.outcome, e.tokens) for e in study.history.events]


@pytest.mark.parametrize("algorithm", TABLED.values(), ids=TABLED)
def test_no_candidate_is_evaluated_twice(tmp_path: Path, algorithm):
    problem = Counted()
    for trials in (7, 30, 30, 60):
        moopt.Study("s", problem, algorithm(), tmp_path / "moopt.journal").run(trials)
    assert len(problem.evaluated) == len(set(problem.evaluated)) == 60


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_seed_decides(algorithm):
    first, second, other = (moopt.Study("s", Landscape(), algorithm(), seed=seed).run(25) for seed in (3, 3, 4))
    assert log(first) == log(second) != log(other)


@settings(max_examples=12)
@given(st.sampled_from(sorted(ALGORITHMS)), st.lists(st.integers(1, 39), max_size=3))
def test_resuming_at_any_point_equals_going_straight_through(algorithm: str, stops: list[int]):
    straight = moopt.Study("s", Counted(), ALGORITHMS[algorithm]()).run(40)
    with tempfile.TemporaryDirectory() as folder:
        for stop in [*sorted(stops), 40]:
            resumed = moopt.Study("s", Counted(), ALGORITHMS[algorithm](), Path(folder) / "moopt.journal").run(stop)
        assert log(resumed) == log(straight)
        assert moopt.load_history(Path(folder) / "moopt.journal").hypervolume() == straight.hypervolume()


KILLED = """
import os, signal, sys
import moopt
from moopt.algorithms import NSGA2
from moopt.testing.landscapes import Landscape

where, number = sys.argv[2], int(sys.argv[3])

class Fatal(Landscape):
    evaluations = 0
    def evaluate(self, config, fidelity):
        self.evaluations += 1
        if where == "evaluating" and self.evaluations == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(config, fidelity)
    def fingerprint(self):
        return {"identity": {"problem": "Landscape"}, "environment": {}}

def watch(history, event):
    print(event.job.trial, flush=True)
    if where == "told" and event.job.trial == number:
        os.kill(os.getpid(), signal.SIGKILL)

moopt.Study("s", Fatal(known=True), NSGA2(6), sys.argv[1]).run(30, watch=watch)
"""


@pytest.mark.parametrize(("where", "number"), [("evaluating", 1), ("evaluating", 13), ("told", 6), ("told", 20)])
def test_killed_and_resumed_loses_nothing(tmp_path: Path, where: str, number: int):
    path = tmp_path / "moopt.journal"
    command = [sys.executable, "-c", KILLED, str(path), where, str(number)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = [int(line) for line in killed.stdout.split()]
    kept = [trial.number for trial in moopt.load_history(path).trials if trial.state == "complete"]
    assert kept == finished
    resumed = moopt.Study("s", Landscape(known=True), NSGA2(6), path).run(30)
    straight = moopt.Study("s", Landscape(known=True), NSGA2(6)).run(30)
    assert [t.config for t in resumed.history.trials] == [t.config for t in straight.history.trials]
    assert resumed.front().drop(columns="seconds").equals(straight.front().drop(columns="seconds"))


def test_interrupted_by_the_keyboard_it_goes_on_with_the_same_trial():
    class Interrupted(Landscape):
        left = 10

        def evaluate(self, config, fidelity):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().evaluate(config, fidelity)

    study = moopt.Study("s", Interrupted(), NSGA2(6))
    with pytest.raises(KeyboardInterrupt):
        study.run(20)
    assert [trial.state for trial in study.history.trials] == ["complete"] * 9 + ["running"]
    study.run(20)
    assert [trial.state for trial in study.history.trials] == ["complete"] * 20
    assert study.history.trials[9].attempts == 2


def test_a_failed_trial_does_not_stop_the_study(caplog: pytest.LogCaptureFixture):
    study = moopt.Study("s", Landscape(behaviour="flaky"), NSGA2(6)).run(30)
    failed = [trial for trial in study.history.trials if trial.state == "failed"]
    assert 0 < len(failed) < len(study.history.trials) == 30
    assert all(trial.failure is not None and trial.failure.kind == "nonfinite" for trial in failed)
    assert f"Trial {failed[0].number} failed: evaluate returned f0 = nan" in caplog.text
    assert not set(study.front().index) & {trial.number for trial in failed}


def test_an_exhausted_space_ends_the_study(caplog: pytest.LogCaptureFixture):
    study = moopt.Study("s", Landscape(TINY), NSGA2(4)).run(50)
    assert len(study.history.trials) == 6
    assert "exhausted" in caplog.text


def test_a_large_space_with_nothing_allowed_is_not_drawn_from_for_long(caplog: pytest.LogCaptureFixture):
    class Counting(Landscape):
        asked = 0

        def known(self, config):
            self.asked += 1
            return super().known(config)

    problem = Counting(MIXED, constraint="known", bound=-1.0)
    assert not moopt.Study("s", problem, NSGA2(50)).run(50).history.trials
    assert problem.asked < 20_000
    assert "after 0 trials: 5,020 draws found none that keeps the known constraints" in caplog.text


def test_another_scale_is_another_study(tmp_path: Path):
    class Scaled(Landscape):
        def __init__(self, scale):
            super().__init__(TINY, 1)
            self.objectives = [moopt.Objective("f0", scale=scale)]

    moopt.Study("s", Scaled("linear"), "random", tmp_path / "moopt.journal").run(2)
    moopt.Study("s", Scaled("linear"), "random", tmp_path / "moopt.journal").run(3)
    with pytest.raises(StudyMismatch, match="objectives"):
        moopt.Study("s", Scaled("log"), "random", tmp_path / "moopt.journal").run(3)


def test_baselines_and_knapsacks_open_a_study():
    study = moopt.Study("s", Counted(), NSGA2(20)).run(20)
    labels = [trial.label for trial in study.history.trials]
    assert labels[:5] == ["2 bits", "3 bits", "4 bits", "6 bits", "8 bits"]
    knapsacks = [label for label in labels if label and label.startswith("knapsack")]
    assert labels[5 : 5 + len(knapsacks)] == knapsacks
    assert "knapsack between 2 bits and 3 bits" in knapsacks
    assert labels[5 + len(knapsacks) :] == [None] * (15 - len(knapsacks))
    assert study.history.events[0].job.kind == "sensitivity"


def test_knapsacks_that_cost_about_the_same_open_a_study_once():
    class Close(Counted):
        def baselines(self):
            names = list(self.space)
            near = {f"{i} of 6 bits": dict.fromkeys(names, 8) | dict.fromkeys(names[:i], 6) for i in range(1, 6)}
            return {**super().baselines(), **near}

    trials = moopt.Study("s", Close(12), NSGA2(20)).run(40).history.trials
    sizes = [trial.values["size"] for trial in trials if trial.label and "knapsack" in trial.label]
    assert len(sizes) > 8
    assert min(np.diff(sorted(sizes))) > 0.035 * np.ptp([trial.values["size"] for trial in trials])


def test_a_baseline_known_to_be_infeasible_and_a_second_equal_one_are_not_run():
    class Baselines(Landscape):
        def baselines(self):
            return {name: dict.fromkeys(LEVELS, bits) for name, bits in (("low", 2), ("again", 2), ("high", 8))}

    study = moopt.Study("s", Baselines(constraint="known"), Random()).run(5)
    assert [trial.label for trial in study.history.trials] == ["low", None, None, None, None]


def test_a_table_of_the_wrong_length_is_refused_by_name():
    class Short(BitToy):
        def sensitivities(self, method, tokens):
            return super().sensitivities(method, tokens)[:2]

    with pytest.raises(StudyError, match=r"Short\.sensitivities gives 2 rows; expected one for each of 5 discrete"):
        moopt.Study("s", Short(5, sensitivities="counted"), "random").run(trials=3)


def test_sensitivities_that_fail_stop_the_study_and_are_tried_again():
    class Failing(Counted):
        broken = True

        def sensitivities(self, method, tokens):
            if self.broken:
                raise RuntimeError("out of memory")
            return super().sensitivities(method, tokens)

    problem = Failing()
    study = moopt.Study("s", problem, NSGA2(6))
    with pytest.raises(StudyError, match="out of memory"):
        study.run(10)
    problem.broken = False
    assert any((t.label or "").startswith("knapsack") for t in study.run(10).history.trials)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"algorithm": NSGA2(7)}, "algorithm.population_size was 6, is 7"),
        ({"algorithm": Random()}, "algorithm.algorithm was NSGA2, is Random"),
        ({"problem": Landscape(MIXED)}, r"space.bits was absent, is .* space.layer0"),
        ({"problem": Landscape(LEVELS, 3)}, "objectives was"),
        ({"problem": Landscape(LEVELS, constraint="known")}, "constraints was"),
    ],
)
def test_another_study_of_that_name_is_refused(tmp_path: Path, change: dict, message: str):
    study = {"problem": Landscape(), "algorithm": NSGA2(6), "storage": tmp_path / "moopt.journal"}
    moopt.Study("s", **study).run(5)
    with pytest.raises(StudyMismatch, match=message):
        moopt.Study("s", **study | change).run(10)
    assert len(moopt.load_history(tmp_path / "moopt.journal").trials) == 5


def test_a_study_seen_from_elsewhere_is_up_to_date(tmp_path: Path):
    here, there = (moopt.Study("s", Landscape(), NSGA2(6), tmp_path / "moopt.journal") for _ in range(2))
    assert len(here.history.trials) == 0
    for trials in (5, 9):
        there.run(trials)
        assert len(here.history.trials) == trials
    assert len(here.run(12).history.trials) == len(there.history.trials) == 12


def test_front_knee_and_pick():
    study = moopt.Study("s", BitToy(6), NSGA2(20)).run(150)
    front, every = study.front(), study.trials()
    assert front["size"].is_monotonic_increasing
    assert front["loss"].is_monotonic_decreasing
    small = every[every["size"] <= 100]
    assert study.pick("size <= 100").values["loss"] == small["loss"].min()
    assert study.pick("loss <= 0.01").values["size"] == every[every["loss"] <= 0.01]["size"].min()
    assert study.pick("size <= 100 and loss > 0.001").values["loss"] == small[small["loss"] > 0.001]["loss"].min()
    assert study.knee().number in front.index
    assert front["size"].min() < study.knee().values["size"] < front["size"].max()


def test_hypervolume_uses_the_given_the_declared_or_an_inferred_reference():
    study = moopt.Study("s", BitToy(6), NSGA2(20)).run(60)
    corner = {"loss": 1.0, "size": 500.0}
    points = np.array([[t.values["loss"], t.values["size"]] for t in study.history.trials])
    assert study.hypervolume(corner) == pytest.approx(pareto.hypervolume(points, [1.0, 500.0]))
    opening = points[:5]
    assert study.hypervolume() == pytest.approx(pareto.hypervolume(points, pareto.reference_point(opening)))


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        ("size <= 0", NoFeasibleTrial, "the trials reach loss .* size"),
        ("speed <= 3", StudyError, "'speed' is no objective or constraint"),
        ("size smaller 3", StudyError, "expected a bound such as"),
        ("size <= many", StudyError, "expected a bound such as"),
    ],
)
def test_a_pick_that_finds_nothing_says_why(condition: str, error: type, message: str):
    study = moopt.Study("s", BitToy(6), NSGA2(6)).run(10)
    with pytest.raises(error, match=message):
        study.pick(condition)


def test_an_infeasible_trial_is_never_best():
    study = moopt.Study("s", Landscape(constraint="measured"), NSGA2(8)).run(60)
    assert any(not trial.feasible for trial in study.history.trials)
    assert (study.front()["mean"] <= 0.6).all()
    assert study.knee().feasible
    assert study.pick("f0 < 1").feasible


def test_measurements_are_made_of_the_front_and_the_baselines_and_only_once(tmp_path: Path):
    class Measured(Counted):
        measurements = {"held-out": moopt.Fidelity(500)}  # noqa: RUF012

        def evaluate(self, config, fidelity):
            found = super().evaluate(config, fidelity)
            return moopt.Evaluation({"loss": 2 * found.values["loss"]}) if fidelity.batch == "held-out" else found

    problem = Measured()
    study = moopt.Study("s", problem, NSGA2(6), tmp_path / "moopt.journal").run(20)
    wanted = {*study.front().index, *(t.number for t in study.history.trials if t.label)}
    assert {number for number, _ in study.history.measures} == wanted
    for number in wanted:
        trial = study.history.trials[number]
        assert study.history.measures[number, "held-out"].values["loss"] == 2 * trial.values["loss"]
    assert study.history.tokens == 100 + 500 * len(wanted)
    count = len(problem.evaluated)
    moopt.Study("s", problem, NSGA2(6), tmp_path / "moopt.journal").run(20)
    assert len(problem.evaluated) == count


def with_parts(**parts: object) -> Landscape:
    problem = Landscape()
    for name, part in parts.items():
        setattr(problem, name, part)
    return problem


def test_a_whole_number_of_numpy_is_a_seed():
    assert moopt.Study("s", Landscape(), seed=np.int64(3)).seed == 3  # type: ignore[arg-type]


def test_a_measurement_that_fails_or_cannot_be_says_why():
    class Measured(Landscape):
        measurements = {"held-out": moopt.Fidelity(500)}  # noqa: RUF012

        def evaluate(self, config, fidelity):
            if fidelity.batch == "held-out":
                raise ArithmeticError("nothing adds up")
            return super().evaluate(config, fidelity)

    study = moopt.Study("s", Measured(), Random()).run(2)
    with pytest.raises(StudyError, match="Trial 0 could not be measured: ArithmeticError: nothing adds up"):
        study.measure(0, "held-out")
    with pytest.raises(StudyError, match="trial is 'a'; expected a whole number"):
        study.measure("a", "held-out")  # type: ignore[arg-type]


def test_a_bound_may_name_what_reads_like_a_condition():
    class Wordy(Landscape):
        def __init__(self):
            super().__init__()
            self.objectives = (moopt.Objective("top-1 error"), moopt.Objective("sand and gravel"))

        def evaluate(self, config, fidelity):
            x = self._mean(config)
            return moopt.Evaluation({"top-1 error": x, "sand and gravel": 1 - x})

    study = moopt.Study("s", Wordy(), Random()).run(9)
    assert study.pick("sand and gravel <= 0.5 and top-1 error<=1").values["sand and gravel"] <= 0.5
    with pytest.raises(StudyError, match="Cannot read None"):
        study.pick(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: moopt.Study("", Landscape()), StudyError, "non-empty string"),
        (lambda: moopt.Study("s", Landscape), ProblemError, r"Landscape\(\) is one"),
        (lambda: moopt.Study("s", Landscape(), "nsga-2"), AlgorithmError, "no algorithm 'nsga-2'"),
        (lambda: moopt.Study("s", Landscape(), NSGA2), AlgorithmError, r"such as NSGA2\(\)"),
        (lambda: moopt.Study("s", Landscape(), seed=-1), StudyError, "whole number from 0"),
        (lambda: moopt.Study("s", Landscape()).run(0), StudyError, "trials is 0; expected a whole number above 0"),
        (lambda: moopt.Study("s", Landscape()).run(), StudyError, "Nothing says when to stop"),
        (lambda: moopt.Study("s" * 600, Landscape()), StudyError, "600 characters; expected at most 512"),
        (lambda: moopt.Study("a\0b", Landscape()), StudyError, "one of them NUL"),
        (lambda: moopt.Study("s", with_parts(objectives=("loss",))), ProblemError, r"expected a tuple of moopt.Obj"),
        (lambda: moopt.Study("s", with_parts(objectives=moopt.Objective("a"))), ProblemError, "expected a tuple of"),
        (lambda: moopt.Study("s", with_parts(constraints=("a",))), ProblemError, "a tuple of moopt.Constraint"),
        (lambda: moopt.Study("s", with_parts(baselines=list)), ProblemError, "expected configurations by name"),
        (lambda: moopt.Study("s", with_parts(fingerprint=dict)).history, ProblemError, "'environment': {...}"),
        (lambda: moopt.Study("s", with_parts(decisions=lambda: [{1, 2}])).history, ProblemError, "cannot be stored"),
        (lambda: moopt.Study("s", Landscape(), resources="cpu"), StudyError, "expected moopt.Resources"),  # type: ignore[arg-type]
        (
            lambda: moopt.Study("s", Landscape()).run(1).hypervolume({"f0": np.nan}),
            StudyError,
            "f0 = nan; expected finite",
        ),
        (lambda: moopt.Study("s", Landscape()).run(1).hypervolume([1]), StudyError, r"is \[1\]; expected a number for"),
        (lambda: NSGA2(0), AlgorithmError, "population_size is 0"),
        (lambda: moopt.Study("s", Landscape()).pick("f0 < 1"), NoFeasibleTrial, "no trial is complete"),
        (lambda: moopt.Study("s", Landscape()).knee(), NoFeasibleTrial, "no complete and feasible trial"),
    ],
)
def test_nonsense_is_refused(make, error: type, message: str):
    with pytest.raises(error, match=message):
        make()


def test_an_algorithm_that_needs_more_than_the_problem_has_is_refused():
    class Demanding(Random):
        requires = frozenset({"gradient", "costs"})

    with pytest.raises(CapabilityError, match=r"Demanding needs what Landscape lacks: costs .*, gradient"):
        moopt.Study("s", Landscape(), Demanding())


@pytest.mark.parametrize("algorithm", TABLED.values(), ids=TABLED)
def test_fewer_trials_than_there_are_change_nothing(tmp_path: Path, algorithm):
    study = moopt.Study("s", Counted(), algorithm(), tmp_path / "moopt.journal").run(20)
    before = log(study)
    assert log(study.run(3)) == before
    assert log(moopt.Study("s", Counted(), algorithm(), tmp_path / "moopt.journal").run(19)) == before


def test_a_table_with_nan_is_no_sensitivity_and_is_tried_again(tmp_path: Path):
    class Odd(Counted):
        def sensitivities(self, method, tokens):
            return super().sensitivities(method, tokens) * np.nan

    for _ in range(2):
        with pytest.raises(StudyError, match="The table table has NaN in it"):
            moopt.Study("s", Odd(), "random", tmp_path / "moopt.journal").run(9)


def test_an_evaluation_that_exits_fails_its_trial_alone():
    class Exits(Counted):
        def evaluate(self, config, fidelity):
            if len(self.evaluated) == 6:
                self.evaluated.append(())
                sys.exit("enough")
            return super().evaluate(config, fidelity)

    history = moopt.Study("s", Exits(), "random").run(9).history
    assert [t.number for t in history.trials if t.state == "failed"] == [6]
    assert "enough" in str(history.trials[6].failure)


class Smooth(Landscape):
    """Bowls that say so."""

    smooth = True


NUMBERS = Space({f"x{i}": Float(0, 1) for i in range(4)})
"""Of which a quadratic has 15 coefficients."""


@pytest.mark.parametrize(
    ("problem", "trials", "name"),
    [
        (BitToy(5), 100_000, "sequential-knapsack"),
        (BitToy(5, sensitivities=False), None, "qnehvi"),
        (Landscape(MIXED), 1000, "qnehvi"),
        (Landscape(MIXED), 1001, "nsga2"),
        (Landscape(MIXED, 4), 500, "qnehvi"),
        (Landscape(MIXED, 4), None, "nsga3"),
        (Landscape(MIXED, 5), 50, "nsga3"),
        (Smooth(NUMBERS), 30, "map"),
        (Smooth(NUMBERS), None, "map"),
        (Smooth(NUMBERS), 29, "qnehvi"),
        (Smooth(NUMBERS), 1001, "nsga2"),
        (Landscape(NUMBERS), 30, "qnehvi"),
        (Smooth(MIXED), 300, "qnehvi"),
        (Smooth(NUMBERS, 5), 300, "nsga3"),
        (Smooth(Space({"share": Simplex("a", "b", "c")})), 300, "qnehvi"),
    ],
)
def test_auto_picks_by_the_problem_and_the_trials(problem: moopt.Problem, trials: int | None, name: str):
    assert moopt.algorithms.suggest(problem, trials).name == name


def test_auto_says_once_what_it_takes_and_why(caplog: pytest.LogCaptureFixture):
    study = moopt.Study("s", Landscape(MIXED))
    with caplog.at_level("INFO", "moopt"):
        study.run(3).run(6)
    assert isinstance(study.algorithm, QNEHVI)
    assert study.suggestion == moopt.algorithms.suggest(study.problem, 3)
    said = [record.message for record in caplog.records if record.message.startswith("auto")]
    assert said == ["auto takes qnehvi: a model of what was measured saves evaluations."]


@pytest.mark.parametrize("begun", ["nsga2", "auto"])
def test_auto_goes_on_with_what_the_study_began_with(tmp_path: Path, begun: str):
    path = tmp_path / "moopt.journal"
    first = moopt.Study("s", Landscape(), begun, path).run(3)
    kind = type(first.algorithm)
    for trials in (6, 2000):
        again = moopt.Study("s", Landscape(), "auto", path)
        assert again.settle(trials) == (moopt.algorithms.name_of(first.algorithm.settings()), again.suggestion.reason)
        assert isinstance(again.algorithm, kind)
    assert "began with it" in again.suggestion.reason
    assert len(again.run(6).history.trials) == 6


def test_auto_takes_what_searches_at_budgets(tmp_path: Path):
    most = {"size": 130}
    study = moopt.Study("s", BitToy(8), storage=tmp_path / "moopt.journal", budgets=most).run(40)
    assert isinstance(study.algorithm, SequentialKnapsack)
    assert study.suggestion.reason == "budgets are given, and the problem has gradients"
    trials = [trial for trial in study.history.trials if trial.label is None]
    assert len(trials) > 20
    assert all(trial.values["size"] <= 130 for trial in trials)
    with pytest.raises(StudyMismatch, match="budgets"):
        moopt.Study("s", BitToy(8), storage=tmp_path / "moopt.journal").run(41)
    again = moopt.Study("s", BitToy(8), storage=tmp_path / "moopt.journal", budgets=most).run(41)
    assert len(again.history.trials) == 41
    assert isinstance(moopt.Study("s", BitToy(8, sensitivities=False), budgets=most).algorithm, EvoPress)
    assert moopt.Study("s", BitToy(8), "rco", budgets=most).algorithm.budgets == {"size": [130.0]}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"algorithm": "nsga2"}, AlgorithmError, "nsga2 takes no budgets; expected 'auto', 'sequential-knapsack'"),
        ({"algorithm": Random()}, StudyError, r"Got budgets beside Random\(\.\.\.\); give them to it, or its name"),
        ({"budgets": "small"}, AlgorithmError, "budgets is 'small'; expected a list of whole numbers"),
        ({"budgets": {"size": "small"}}, MooptError, "The budgets of 'size' are 'small'; expected numbers"),
        ({"problem": Landscape(MIXED)}, CapabilityError, "EvoPress needs what Landscape lacks: costs"),
    ],
)
def test_budgets_that_cannot_be_are_refused_at_once(arguments: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        moopt.Study(**{"name": "s", "problem": BitToy(8), "budgets": {"size": 130}, **arguments})


@pytest.mark.parametrize("file", ["a.journal", "sqlite:///{}/a.db"])
def test_a_search_that_is_refused_leaves_no_file(tmp_path: Path, file: str):
    study = moopt.Study("s", BitToy(8), storage=str(tmp_path / file.format(tmp_path)), budgets={"size": 1e9})
    with pytest.raises(BudgetError, match="every configuration is within it"):
        study.run(5)
    assert not list(tmp_path.iterdir())


def test_auto_decides_by_the_trials_even_if_it_was_looked_at_before():
    study = moopt.Study("s", Landscape(TINY))
    assert isinstance(study.algorithm, QNEHVI)
    assert isinstance(study.run(2000).algorithm, NSGA2)


def test_auto_refuses_other_settings_of_what_the_study_began_with(tmp_path: Path):
    moopt.Study("s", Landscape(), NSGA2(6), tmp_path / "moopt.journal").run(3)
    with pytest.raises(StudyMismatch, match=r"algorithm.population_size was 6, is"):
        moopt.Study("s", Landscape(), "auto", tmp_path / "moopt.journal").run(5)
