"""Arguments that make no sense are refused when an algorithm is made, in words; numpy's numbers are numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest

import moopt
from moopt.algorithms import (
    NSGA2,
    QNEHVI,
    ChebyshevAnnealing,
    MAPElites,
    OptunaSampler,
    ParEGO,
    SequentialKnapsack,
)
from moopt.algorithms.chebyshev import Constant, Decay, Improvement
from moopt.errors import AlgorithmError, StudyError
from moopt.testing.landscapes import TINY, Landscape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: moopt.optuna_sampler(3), "expected a name or an algorithm"),  # type: ignore[arg-type]
        (lambda: moopt.optuna_sampler("auto"), "'auto' looks at a problem"),
        (lambda: MAPElites([3]), "expected names or Descriptors"),  # type: ignore[list-item]
        (lambda: MAPElites(3), "expected a list"),  # type: ignore[arg-type]
        (lambda: OptunaSampler(None), "expected a name, such as 'tpe'"),  # type: ignore[arg-type]
        (lambda: SequentialKnapsack(budgets=3), "expected a list of whole numbers"),  # type: ignore[arg-type]
        (lambda: SequentialKnapsack(budgets="ab"), "expected a list of whole numbers"),  # type: ignore[arg-type]
        (lambda: SequentialKnapsack(budgets=["a"]), "a budget is 'a'"),  # type: ignore[list-item]
        (lambda: ChebyshevAnnealing(rho="x"), "rho is 'x'; expected a finite number from 0"),  # type: ignore[arg-type]
        (lambda: ChebyshevAnnealing(rho=-1), "rho is -1"),
        (lambda: ParEGO(rho=math.nan), "rho is nan"),
        (lambda: Improvement(rho=-1), "rho is -1"),
        (lambda: Decay(kappa=-1), "kappa is -1"),
        (lambda: Constant(7), "chance is 7; expected a number from 0 to 1"),
        (lambda: QNEHVI(prior="no"), "prior is 'no'; expected True or False"),  # type: ignore[arg-type]
        (lambda: NSGA2(np.float64(8)), "population_size is"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(AlgorithmError, match=message):
        make()


def test_a_truth_is_no_weight() -> None:
    with pytest.raises(StudyError, match="expected numbers by objective"):
        moopt.Preference(weights={"kl": True})


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    algorithm = NSGA2(np.int64(4))  # type: ignore[arg-type]
    assert algorithm.settings() == NSGA2(4).settings()
    assert type(algorithm.population_size) is int
    study = moopt.Study("s", Landscape(TINY), algorithm).run(np.int64(5))  # type: ignore[arg-type]
    assert len(study.history.trials) == 5
