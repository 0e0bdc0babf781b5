from pathlib import Path

import pytest

import moopt
from moopt.errors import StudyError
from moopt.history import History
from moopt.stopping import Stop, Stopwatch
from moopt.testing.landscapes import Landscape
from moopt_problems.synthetic import BitToy


class Slow(moopt.Problem):
    """A loss that falls by a hundredth a trial, with an error of a tenth, whose variance is told or not."""

    space = moopt.Space({"n": moopt.Integer(0, 39)})
    objectives = (moopt.Objective("loss", reference=3.0),)

    def __init__(self, told: bool):
        self.told = told

    def baselines(self):
        return {f"{n}": {"n": n} for n in range(40)}

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"loss": 1 - 0.01 * config["n"]}, {"loss": 0.01} if self.told else None)


def counted(storage: Path) -> moopt.Study:
    """Five tokens of sensitivities, then one token a trial."""
    return moopt.Study("s", BitToy(5, sensitivities="counted"), "nsga2", storage)


def test_trials_and_tokens_count_what_earlier_runs_did(tmp_path: Path):
    path = tmp_path / "moopt.journal"
    first = counted(path).run(tokens=20)
    assert len(first.history.trials) == 15
    assert first.reached == "20 forward tokens are spent, of 20"
    assert len(counted(path).run(tokens=25).history.trials) == 20
    last = counted(path).run(trials=22, tokens=100)
    assert len(last.history.trials) == 22
    assert last.reached is None
    assert len(counted(path).run(trials=22).history.trials) == 22


def test_a_limit_of_tokens_alone_is_refused_where_nothing_counts_any():
    study = moopt.Study("s", Slow(told=False), "random")
    with pytest.raises(
        StudyError, match=r"tokens=100 would never end this run: \d\d trials .* limit trials or seconds"
    ):
        study.run(tokens=100)
    assert len(study.history.trials) < 40
    assert len(study.run(tokens=100, trials=40).history.trials) == 40


def test_seconds_are_those_of_the_run():
    history = moopt.Study("s", Landscape(), "random").run(3).history
    now = iter([10.0, 14.9, 15.0])
    stopwatch = Stopwatch(Stop(seconds=5), history, lambda: next(now))
    assert stopwatch.room() is None
    assert stopwatch.reached() is None
    assert stopwatch.reached() == "5 seconds have passed"


def test_nothing_begins_when_time_is_up_and_more_time_goes_on():
    study = moopt.Study("s", Landscape(), "random").run(seconds=1e-9)
    assert len(study.history.trials) == 0
    assert study.reached == "1e-09 seconds have passed"
    assert len(study.run(trials=2, seconds=600).history.trials) == 2
    assert study.reached is None


def test_a_hypervolume_that_is_enough_ends_the_search():
    wanted = 0.9 * moopt.Study("s", BitToy(5, scale="log"), "random").run(40).hypervolume()
    study = moopt.Study("s", BitToy(5, scale="log"), "random").run(40, hypervolume=wanted)
    before = moopt.Study("s", BitToy(5, scale="log"), "random").run(len(study.history.trials) - 1)
    assert before.hypervolume() < wanted <= study.hypervolume()
    assert "was wanted" in study.reached


def test_patience_ends_a_search_that_improves_no_more():
    study = moopt.Study("s", Landscape(behaviour="constant"), "random").run(60, patience=7)
    assert len(study.history.trials) == 1 + 7
    assert study.reached == "the last 7 trials have not raised the hypervolume beyond the noise"
    assert len(study.run(60, patience=5).history.trials) == 8 + 5


@pytest.mark.parametrize(("told", "patience", "trials"), [(False, 5, 40), (True, 5, 1 + 5), (True, 20, 40)])
def test_patience_counts_gains_beyond_the_noise_alone(told: bool, patience: int, trials: int):
    study = moopt.Study("s", Slow(told), "random").run(40, patience=patience)
    assert len(study.history.trials) == trials


def test_failures_use_up_patience():
    study = moopt.Study("s", Landscape(behaviour="failing"), "random").run(60, patience=6)
    assert [trial.state for trial in study.history.trials] == ["failed"] * 6


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "Nothing says when to stop; give one of trials, seconds, tokens, hypervolume, patience"),
        ({"seconds": 0}, "seconds is 0; expected a number above 0"),
        ({"tokens": 1.5}, "tokens is 1.5; expected a whole number above 0"),
        ({"trials": True}, "trials is True; expected a whole number above 0"),
        ({"hypervolume": float("nan")}, "hypervolume is nan; expected a number above 0"),
        ({"patience": -1}, "patience is -1; expected a whole number above 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict, message: str):
    with pytest.raises(StudyError, match=message):
        moopt.Study("s", Landscape()).run(**limits)


class Counting(History):
    volumes = 0

    def hypervolume(self, reference=None):
        self.volumes += 1
        return super().hypervolume(reference)


def test_a_hypervolume_is_computed_once_for_each_finished_trial():
    found = moopt.Study("s", BitToy(5, scale="log"), "random").run(8).history
    history = Counting("s", found.objectives, trials=found.trials[:7], events=found.events)
    watch = Stopwatch(Stop(hypervolume=1e9, patience=99, tokens=10**9), history)
    for _ in range(5):
        assert watch.reached() is None
    assert history.volumes == 1
    history.trials.append(found.trials[7])
    watch.reached()
    assert history.volumes == 2
