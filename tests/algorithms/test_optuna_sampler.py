import sys

import optuna
import pytest

import moopt
from moopt.algorithms import Algorithm, OptunaSampler
from moopt.errors import AlgorithmError
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated, replay
from moopt.testing.landscapes import LEVELS, MIXED, TINY, Landscape


class TestTPE(AlgorithmSuite):
    trials = 16

    def algorithm(self) -> Algorithm:
        return OptunaSampler("tpe")


class TestOptunasNSGA2(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return OptunaSampler(lambda seed: optuna.samplers.NSGAIISampler(population_size=8, seed=seed))


class Recording(optuna.samplers.RandomSampler):
    """Keeps what it was shown, and notes the number of each trial."""

    shown: list = []  # noqa: RUF012

    def sample_relative(self, study, trial, search_space):
        Recording.shown.append(study.get_trials(deepcopy=False))
        study._storage.set_trial_system_attr(trial._trial_id, "noted", trial.number)
        study._storage.set_study_system_attr(study._study_id, "last", trial.number)
        return {}


@pytest.fixture
def shown():
    Recording.shown.clear()
    return Recording.shown


def test_a_sampler_sees_levels_as_ordered_integers_and_pending_trials_as_running(shown: list):
    drive(OptunaSampler(lambda seed: Recording(seed=seed)), Landscape(MIXED, constraint="measured"), 12, workers=3)
    states = [trial.state.name for trial in shown[-1]]
    assert states == ["COMPLETE"] * 9 + ["RUNNING"] * 3  # two that are pending, and the one it is asked for
    trial = shown[-1][0]
    assert isinstance(trial.distributions["bits"], optuna.distributions.IntDistribution)
    assert trial.params["bits"] in range(4)
    assert isinstance(trial.distributions["kind"], optuna.distributions.CategoricalDistribution)
    assert set(trial.constraints) == {"mean"}
    assert len(trial.values) == 2


def test_failed_trials_are_shown_as_failed(shown: list):
    drive(OptunaSampler(lambda seed: Recording(seed=seed)), Landscape(behaviour="failing"), 5)
    assert [trial.state.name for trial in shown[-1]] == ["FAIL"] * 4 + ["RUNNING"]


def test_what_a_sampler_notes_is_kept_and_replaying_never_asks_it(shown: list):
    def make(seed: int) -> Recording:
        return Recording(seed=seed)

    log = drive(OptunaSampler(make), Landscape(), 6)
    assert [job.note for job in evaluated(log)] == [{"trial": {"noted": n}, "study": {"last": n}} for n in range(6)]
    shown.clear()
    again = replay(OptunaSampler(make), Landscape(), log)
    assert shown == []
    again.ask(1)
    assert [trial.system_attrs.get("noted") for trial in shown[0][:6]] == list(range(6))


def test_a_sampler_that_repeats_itself_still_finds_every_candidate():
    class Stubborn(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, param_name, param_distribution):
            return param_distribution.to_external_repr(0)

    jobs = evaluated(drive(OptunaSampler(lambda seed: Stubborn(seed=seed)), Landscape(TINY), 20, workers=2))
    assert len({TINY.key(job.config) for job in jobs}) == len(jobs) == 6
    near = evaluated(drive(OptunaSampler(lambda seed: Stubborn(seed=seed)), Landscape(LEVELS), 5))
    assert all(LEVELS.encode(job.config).sum() <= 6 for job in near), "not near what was suggested"


def test_settings_tell_factories_apart_by_what_they_make():
    plain, same, other = (
        OptunaSampler(lambda seed: optuna.samplers.TPESampler(seed=seed)).settings(),
        OptunaSampler(lambda number: optuna.samplers.TPESampler(seed=number)).settings(),
        OptunaSampler(lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)).settings(),
    )
    assert plain == same != other
    assert OptunaSampler("tpe").settings() == {"algorithm": "OptunaSampler", "sampler": "tpe"}


def test_the_gaussian_process_searches():
    sampler = OptunaSampler(lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=3))
    study = moopt.Study("s", Landscape(TINY), sampler).run(5)
    assert len({TINY.key(trial.config) for trial in study.history.trials if trial.state == "complete"}) == 5


def test_a_sampler_of_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(
        AlgorithmError, match=r"'hub:samplers/auto_sampler' needs .* pip install -e '\.\[hub\]' in the clone"
    ):
        OptunaSampler("hub:samplers/auto_sampler")


@pytest.mark.parametrize("sampler", ["cmaes", lambda seed: "tpe"], ids=["unknown", "no sampler"])
def test_nonsense_is_refused(sampler):
    with pytest.raises(AlgorithmError, match="expected"):
        OptunaSampler(sampler)
