import pickle

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2, ChebyshevAnnealing, ParEGO
from moopt.errors import AlgorithmError

optuna.logging.set_verbosity(optuna.logging.WARNING)

FIXED = {
    "bits": CategoricalDistribution([2, 3, 4, None]),
    "n": IntDistribution(3, 21, step=3),
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "width": IntDistribution(1, 1000, log=True),
    "x": FloatDistribution(-1.0, 1.0),
    "step": FloatDistribution(0.0, 1.0, step=0.1),
    "only": IntDistribution(4, 4),
}


def study(sampler: optuna.samplers.BaseSampler, objectives: int = 2, **settings) -> optuna.Study:
    return optuna.create_study(sampler=sampler, directions=["minimize", "maximize"][:objectives], **settings)


def zdt(trial: optuna.Trial) -> tuple[float, float]:
    x = [trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(6)]
    rest = 1 + 9 * sum(x[1:]) / 5
    return x[0], -rest * (1 - (x[0] / rest) ** 0.5)


def hypervolume(found: optuna.Study) -> float:
    return pareto.hypervolume([[t.values[0], -t.values[1]] for t in found.best_trials], [1.1, 6.0])


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "chebyshev", "parego", "sobol", "random"])
def test_any_algorithm_runs_in_a_plain_study(name: str):
    found = study(moopt.optuna_sampler(name))
    found.optimize(zdt, n_trials=30)
    assert len({tuple(t.params.values()) for t in found.trials}) == 30


def test_it_searches():
    ours, random = (study(s) for s in (moopt.optuna_sampler(NSGA2(20)), optuna.samplers.RandomSampler(0)))
    for found in (ours, random):
        found.optimize(zdt, n_trials=300)
    assert hypervolume(ours) > 1.1 * hypervolume(random)


def test_every_kind_of_parameter_keeps_to_its_distribution():
    found = study(moopt.optuna_sampler(NSGA2(8)), 1)
    for _ in range(60):
        trial = found.ask(FIXED)
        assert trial.params["only"] == 4
        assert all(d._contains(d.to_internal_repr(trial.params[name])) for name, d in FIXED.items())
        found.tell(trial, trial.params["rate"])
    assert {t.params["bits"] for t in found.trials} == {2, 3, 4, None}
    late = [t.params["rate"] for t in found.trials[-20:]]
    assert sorted(late)[10] < 1e-3, "not searched on the logarithmic scale"


def test_a_new_sampler_goes_on_from_the_studys_trials():
    first = study(moopt.optuna_sampler(NSGA2(6)), 1)
    for _ in range(20):
        trial = first.ask(FIXED)
        first.tell(trial, trial.params["x"])
    second = study(moopt.optuna_sampler(NSGA2(6)), 1)
    second.add_trials(first.get_trials())
    assert second.ask(FIXED).params == first.ask(FIXED).params
    pickle.loads(pickle.dumps(first.sampler))


def test_trials_that_fail_are_pruned_or_lack_a_parameter_do_no_harm():
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number % 5 == 1:
            raise optuna.TrialPruned
        if trial.number % 5 == 2:
            raise ArithmeticError
        return x + (trial.suggest_float("y", 0, 1) if trial.number % 2 else 0.0)

    found = study(moopt.optuna_sampler(NSGA2(6)), 1)
    found.optimize(objective, n_trials=40, catch=ArithmeticError)
    states = [trial.state for trial in found.trials]
    assert states.count(TrialState.COMPLETE) == 24


def test_constraints_are_searched_with():
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        values = zdt(trial)
        trial.set_constraint("x1 is large", 0.7 - trial.params["x1"])
        return values

    found = study(moopt.optuna_sampler(NSGA2(10)))
    found.optimize(objective, n_trials=120)
    held = [trial.params["x1"] >= 0.7 for trial in found.trials]
    assert sum(held[:20]) < 12 < sum(held[-20:])


def test_workers_get_different_candidates():
    found = study(moopt.optuna_sampler(ParEGO(opening=4)), 1)
    for _ in range(6):
        found.tell(trial := found.ask(FIXED), trial.params["x"])
    pending = [found.ask(FIXED) for _ in range(4)]
    assert len({tuple(trial.params.values()) for trial in pending}) == 4
    found.optimize(lambda trial: trial.suggest_float("x", -1.0, 1.0), n_trials=8, n_jobs=2)


def test_an_algorithm_that_needs_more_than_optuna_tells_is_refused():
    with pytest.raises(AlgorithmError, match="needs a problem with costs, gradient"):
        moopt.optuna_sampler("sequential-knapsack")
    with pytest.raises(AlgorithmError, match="expected one of"):
        moopt.optuna_sampler("nsga-2")


@pytest.mark.parametrize("high", [40, 400])
def test_whole_numbers_on_a_logarithmic_scale_are_not_tried_twice(high: int):
    found = study(moopt.optuna_sampler("random"), 1)
    found.optimize(lambda trial: float(trial.suggest_int("n", 1, high, log=True)), n_trials=40)
    assert len({trial.params["n"] for trial in found.trials}) >= 38


def test_what_an_algorithm_notes_is_kept_with_the_trial():
    found = study(moopt.optuna_sampler(ChebyshevAnnealing(20, opening=5)))
    found.optimize(zdt, n_trials=8)
    notes = [trial.system_attrs.get("moopt:note", {}) for trial in found.trials]
    assert [bool(note) for note in notes] == [False] * 5 + [True] * 3
    assert notes[-1].keys() == {"weights", "explores", "parent"}
    again = study(moopt.optuna_sampler(ChebyshevAnnealing(20, opening=5)))
    again.add_trials(found.trials)
    assert again.ask(FLOATS).params == found.ask(FLOATS).params


FLOATS = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(6)}
