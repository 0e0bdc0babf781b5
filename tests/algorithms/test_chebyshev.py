from dataclasses import dataclass

import numpy as np
import pytest

import moopt
from moopt.algorithms import Algorithm, ChebyshevAnnealing, Random
from moopt.algorithms.chebyshev import Constant, Contribution, Decay, Improvement, Step
from moopt.errors import AlgorithmError
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated
from moopt.testing.landscapes import LEVELS, Landscape
from moopt_problems.synthetic import BitToy, PymooFunction


class TestChebyshevAnnealing(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return ChebyshevAnnealing(trials=60, opening=8)


def test_exploring_is_half_as_likely_half_way():
    assert Decay()(0.0) == 1.0
    assert Decay()(0.5) == pytest.approx(0.5)
    assert Constant(0.3)(0.9) == 0.3


def test_gates():
    accepted = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    between = Step(np.array([0.2, 0.9]), accepted[1], accepted, np.array([0.5, 0.5]))
    better = Step(np.array([0.4, 0.4]), accepted[1], accepted, np.array([0.5, 0.5]))
    worse = Step(np.array([0.5, 0.6]), accepted[1], accepted, np.array([0.5, 0.5]))
    assert [Contribution()(step) for step in (between, better, worse)] == [True, True, False]
    assert [Improvement()(step) for step in (between, better, worse)] == [False, True, False]


def test_a_trial_is_a_move_of_the_best_for_its_preference():
    class Moved(Landscape):
        def moves(self, config, rng):
            name = self.space.names[int(rng.integers(len(self.space)))]
            return {**config, name: self.space[name].values[int(rng.integers(4))]}

    jobs = evaluated(drive(ChebyshevAnnealing(opening=10), Moved(), 60))
    assert [job.note for job in jobs[:10]] == [{}] * 10
    for job in jobs[10:]:
        assert sum(job.note["weights"]) == pytest.approx(1)
        assert job.note["parent"] < job.trial


def test_a_gate_of_ones_own_decides_who_has_offspring():
    @dataclass(frozen=True)
    class Nothing:
        def __call__(self, step: Step) -> bool:
            return False

    algorithm = ChebyshevAnnealing(opening=10, explore=Nothing(), exploit=Nothing())
    jobs = evaluated(drive(algorithm, Landscape(), 40))
    assert {job.note["parent"] for job in jobs[10:]} == {0}


def test_settings_tell_gates_and_schedules_apart():
    one, same, other = (ChebyshevAnnealing(schedule=Decay(kappa)).settings() for kappa in (1.0, 1.0, 2.0))
    assert one == same != other
    assert one["explore"] == {"kind": "Contribution"}
    with pytest.raises(AlgorithmError, match="expected an object of a dataclass"):
        ChebyshevAnnealing(explore=lambda step: True)


def test_while_nothing_is_feasible_it_moves_from_the_least_infeasible():
    problem = Landscape(LEVELS, constraint="measured", bound=-1.0)
    jobs = evaluated(drive(ChebyshevAnnealing(opening=10), problem, 60))
    means = [problem.evaluate(job.config, job.fidelity).values["mean"] for job in jobs]
    assert means[jobs[30].note["parent"]] == min(means[:30])


@pytest.mark.parametrize("problem", [BitToy(30), PymooFunction("zdt1", 10)], ids=["bits", "zdt1"])
def test_it_beats_random_search(problem: moopt.Problem):
    reference = {"loss": 0.1, "size": 1200.0} if isinstance(problem, BitToy) else None
    ours, random = (
        moopt.Study("s", problem, a).run(400).hypervolume(reference) for a in (ChebyshevAnnealing(400), Random())
    )
    assert ours > 1.1 * random
