from pathlib import Path

import optuna
import pytest

import moopt
from moopt import algorithms

from moopt.algorithms import (  # isort: skip
    MAP, MMMO, NSGA2, NSGA3, QNEHVI, RCO, BayesianMAP, ChebyshevAnnealing, EvoPress, MAPElites, OptunaSampler, ParEGO,
    Random, SequentialKnapsack, Sobol, SurrogateEvolution,
)  # fmt: skip
from moopt.errors import StudyError, StudyMismatch
from moopt.testing.landscapes import Landscape
from moopt_problems.synthetic import BitToy, PymooFunction

BLIND = {"random", "sobol"}
"""Learn nothing from what they are told: only what is known can keep them within a preference."""

ALGORITHMS = {
    "bayesian-map": (lambda: BayesianMAP(10, 8, 4), 34),
    "chebyshev": (lambda: ChebyshevAnnealing(40, opening=10), 40),
    "map": (lambda: MAP(10, 8), 34),
    "map-elites": (lambda: MAPElites(opening=10), 40),
    "mm-mo": (lambda: MMMO(6, 4, 4), 14),
    "nsga2": (lambda: NSGA2(8), 40),
    "nsga3": (lambda: NSGA3(8), 40),
    "parego": (lambda: ParEGO(opening=6, candidates=60), 14),
    "qnehvi": (lambda: QNEHVI(initial=5), 20),
    "evopress": (lambda: EvoPress(offspring=4), 40),
    "random": (Random, 20),
    "rco": (lambda: RCO(steps=20, samples=1), 40),
    "sequential-knapsack": (SequentialKnapsack, 25),
    "sobol": (Sobol, 20),
    "surrogate-evolution": (lambda: SurrogateEvolution(generations=5), 24),
    "tpe": (lambda: OptunaSampler(lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)), 24),
}
"""Every algorithm, and how many trials show where it goes."""

ELSEWHERE = {"ladder", "nested-map", "frank-wolfe"}
"""A ladder goes where what it wraps goes; the others look for one mixture, in spaces of their own."""

BUDGETED = {"evopress", "rco", "sequential-knapsack"}
"""Allocate levels."""


def test_every_algorithm_is_tried():
    assert ALGORITHMS.keys() | ELSEWHERE == algorithms.NAMES.keys()


def problem_for(algorithm: str) -> BitToy:
    return BitToy(6, scale="log", uniform=algorithm in BUDGETED)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("bounds", "direction"), [({"f1": -0.4}, "max"), ({"size": 75}, "min")], ids=["max", "min"])
def test_what_is_known_to_lie_beyond_is_never_evaluated(algorithm: str, bounds: dict, direction: str):
    if algorithm in BUDGETED and direction == "max":
        pytest.skip("a landscape has no gradients")
    problem = Landscape(known=True) if direction == "max" else BitToy(4, sensitivities=algorithm in BUDGETED)
    study = moopt.Study("s", problem, ALGORITHMS[algorithm][0](), preference=moopt.Preference(bounds)).run(11)
    ((name, bound),) = bounds.items()
    values = study.trials()[name]
    assert len(values) == 11
    assert (values >= bound).all() if direction == "max" else (values <= bound).all()
    assert {t.label for t in study.history.trials} >= ({"2 bits", "3 bits"} if direction == "min" else {None})


@pytest.mark.parametrize(("algorithm", "trials"), [("chebyshev", 50), ("nsga2", 50), ("qnehvi", 14)])
def test_a_bound_on_what_is_measured_steers(algorithm: str, trials: int):
    def within(preference: moopt.Preference | None) -> int:
        problem = BitToy(4, sensitivities=False, uniform=False)
        study = moopt.Study("s", problem, ALGORITHMS[algorithm][0](), preference=preference).run(trials)
        assert study.history.feasible() == study.history.trials, "the study takes what lies beyond as it is"
        return sum(trial.values["loss"] <= 0.01 for trial in study.history.trials)

    assert within(moopt.Preference({"loss": 0.01})) > within(None)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - BLIND))
@pytest.mark.parametrize("space", ["floats", "levels"])
def test_weights_steer_every_algorithm_that_learns(algorithm: str, space: str):
    if algorithm in BUDGETED and space == "floats":
        pytest.skip("it allocates levels")
    make, trials = ALGORITHMS[algorithm]
    problem = PymooFunction("zdt1", 3) if space == "floats" else problem_for(algorithm)
    name, other = ("f0", "f1") if space == "floats" else ("size", "log_loss")
    near = 0.25 if space == "floats" else 0.5 * problem.objectives[1].reference

    def share(preference: moopt.Preference | None) -> float:
        found = moopt.Study("s", problem, make(), preference=preference).run(trials).trials()[name]
        return float((found[trials // 2 :] <= near).mean())

    assert share(moopt.Preference(weights={name: 4, other: 1})) > share(None) + 0.15


@pytest.mark.parametrize("algorithm", sorted(BLIND))
def test_weights_change_nothing_where_nothing_is_learned(algorithm: str):
    preferred, plain = (
        moopt.Study("s", Landscape(), algorithm, preference=preference).run(9).trials()[["f0", "f1"]].to_numpy()
        for preference in (moopt.Preference(weights={"f0": 1}), None)
    )
    assert (preferred == plain).all()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - BUDGETED))
def test_a_study_with_weights_goes_on_as_if_it_had_not_stopped(algorithm: str, tmp_path: Path):
    def study(storage: Path) -> moopt.Study:
        preference = moopt.Preference(weights={"f0": 2, "f1": 1})
        return moopt.Study("s", Landscape(known=True), ALGORITHMS[algorithm][0](), storage, preference=preference)

    once = study(tmp_path / "once").run(14)
    study(tmp_path / "twice").run(9)
    assert study(tmp_path / "twice").run(14).trials()["f0"].tolist() == once.trials()["f0"].tolist()


def test_a_reference_bounds_and_is_where_volume_ends(tmp_path: Path):
    corner = {"loss": 0.05, "size": 80.0}

    def study(preference: moopt.Preference | None) -> moopt.Study:
        return moopt.Study("s", BitToy(5), NSGA2(8), tmp_path / "s.journal", preference=preference)

    found = study(moopt.Preference(reference=corner)).run(20)
    assert (found.trials()["size"] <= 80).all()
    assert found.hypervolume() == found.hypervolume(corner) < found.hypervolume({"loss": 0.05, "size": 100})
    assert moopt.load_history(tmp_path / "s.journal").hypervolume() == found.hypervolume()


def test_the_preference_belongs_to_the_study(tmp_path: Path):
    def study(preference: moopt.Preference | None) -> moopt.Study:
        return moopt.Study("s", BitToy(5), "random", tmp_path / "moopt.journal", preference=preference)

    study(moopt.Preference({"size": 80})).run(3)
    assert len(study(moopt.Preference({"size": 80})).run(5).history.trials) == 5
    with pytest.raises(StudyMismatch, match=r"preference.bounds.size was 80, is 60"):
        study(moopt.Preference({"size": 60})).run(7)
    with pytest.raises(StudyMismatch, match=r"preference.weights was absent, is .*'size': 2"):
        study(moopt.Preference({"size": 80}, weights={"size": 2})).run(7)
    with pytest.raises(StudyMismatch, match=r"preference was .*, is absent"):
        study(None).run(7)


def test_bounds_alone_are_stored_as_they_always_were():
    assert moopt.Preference({"size": 80}).describe() == {"bounds": {"size": 80}}
    assert moopt.Preference(weights={"loss": 2}).describe() == {"weights": {"loss": 2}, "width": 0.1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "says nothing; expected bounds, weights or a reference"),
        ({"bounds": {}}, "expected numbers by objective, such as .*'size_mb': 80"),
        ({"bounds": {"size": float("inf")}}, "inf"),
        ({"bounds": {"speed": 3}}, "bounds name speed; expected objectives of the problem: loss, size"),
        ({"weights": {"speed": 3}}, "weights name speed; expected objectives of the problem: loss, size"),
        ({"weights": {"loss": 0}}, "expected numbers above 0"),
        ({"weights": [2, 1]}, "expected numbers by objective, such as .*'kl': 2"),
        ({"weights": {"loss": 1}, "width": 0}, "The width is 0; expected a share"),
        ({"reference": {"size": "80 MB"}}, "The reference is .*80 MB"),
        ({"bounds": {"size": 80}, "reference": {"size": 90}}, "both name size"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict, message: str):
    with pytest.raises(StudyError, match=message):
        moopt.Study("s", BitToy(5), "random", preference=moopt.Preference(**given)).run(3)


def test_only_a_preference_is_one():
    with pytest.raises(StudyError, match=r"The preference is .*; expected a moopt.Preference"):
        moopt.Study("s", BitToy(5), preference={"size": 80})


def test_objectives_that_are_a_property_are_told():
    class Property(moopt.Problem):
        space = Landscape().space
        objectives = property(lambda self: (moopt.Objective("loss"),))

        def evaluate(self, config, fidelity):
            return moopt.Evaluation({"loss": 1.0})

    with pytest.raises(StudyError, match=r"Property cannot be set .* make them attributes"):
        moopt.Preference(bounds={"loss": 1.0}).applied(Property())
