from pathlib import Path

import pytest

import moopt
from moopt.algorithms import NSGA2, QNEHVI, ChebyshevAnnealing, OptunaSampler, ParEGO, Random
from moopt.errors import StudyError, StudyMismatch
from moopt.testing.problems import Landscape
from moopt_problems.synthetic import BitToy

ALGORITHMS = {
    "chebyshev": lambda: ChebyshevAnnealing(40),
    "nsga2": lambda: NSGA2(8),
    "parego": ParEGO,
    "qnehvi": QNEHVI,
    "random": Random,
    "tpe": OptunaSampler,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize(("bounds", "direction"), [({"f1": -0.4}, "max"), ({"size": 75}, "min")], ids=["max", "min"])
def test_what_is_known_to_lie_beyond_is_never_evaluated(algorithm, bounds: dict, direction: str):
    problem = Landscape(known=True) if direction == "max" else BitToy(4, sensitivities=False)
    study = moopt.Study("s", problem, algorithm(), preference=moopt.Preference(bounds)).run(13)
    ((name, bound),) = bounds.items()
    values = study.trials()[name]
    assert len(values) == 13
    assert (values >= bound).all() if direction == "max" else (values <= bound).all()
    assert {t.label for t in study.history.trials} >= ({"2 bits", "3 bits"} if direction == "min" else {None})


@pytest.mark.parametrize(("algorithm", "trials"), [("chebyshev", 50), ("nsga2", 50), ("qnehvi", 14)])
def test_a_bound_on_what_is_measured_steers(algorithm: str, trials: int):
    def within(preference: moopt.Preference | None) -> int:
        problem = BitToy(4, sensitivities=False, uniform=False)
        study = moopt.Study("s", problem, ALGORITHMS[algorithm](), preference=preference).run(trials)
        assert study.history.feasible() == study.history.trials, "the study takes what lies beyond as it is"
        return sum(trial.values["loss"] <= 0.01 for trial in study.history.trials)

    assert within(moopt.Preference({"loss": 0.01})) > within(None)


def test_the_preference_belongs_to_the_study(tmp_path: Path):
    def study(preference: moopt.Preference | None) -> moopt.Study:
        return moopt.Study("s", BitToy(5), "random", tmp_path / "moopt.journal", preference=preference)

    study(moopt.Preference({"size": 80})).run(3)
    assert len(study(moopt.Preference({"size": 80})).run(5).history.trials) == 5
    with pytest.raises(StudyMismatch, match=r"preference.bounds.size was 80, is 60"):
        study(moopt.Preference({"size": 60})).run(7)
    with pytest.raises(StudyMismatch, match=r"preference was .*, is absent"):
        study(None).run(7)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "expected numbers by objective"),
        ({"size": float("inf")}, "inf"),
        ({"speed": 3}, "objectives of the problem: loss, size"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict, message: str):
    with pytest.raises(StudyError, match=message):
        moopt.Study("s", BitToy(5), "random", preference=moopt.Preference(bounds)).run(3)
