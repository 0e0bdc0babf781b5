import numpy as np
import pytest

import moopt
from moopt.algorithms import NSGA2, NSGA3, Algorithm, Random
from moopt.algorithms.nsga3 import directions
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated
from moopt.testing.landscapes import LEVELS, Landscape
from moopt_problems.synthetic import PymooFunction


class TestNSGA3(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return NSGA3(population_size=8)


@pytest.mark.parametrize(("objectives", "most", "n"), [(1, 50, 1), (2, 50, 50), (3, 100, 91), (5, 100, 70), (5, 3, 5)])
def test_directions_are_spread_over_the_simplex(objectives: int, most: int, n: int):
    found = directions(objectives, most)
    assert found.shape == (n, objectives)
    assert len(np.unique(found, axis=0)) == n
    assert np.allclose(found.sum(axis=1), 1)
    assert (found >= 0).all()


def test_it_beats_nsga2_and_random_search_on_five_objectives():
    problem = PymooFunction("dtlz2", 9, 5)
    nsga3, nsga2, random = (moopt.Study("s", problem, a).run(400) for a in (NSGA3(40), NSGA2(40), Random()))
    assert nsga3.hypervolume() > 1.1 * max(nsga2.hypervolume(), random.hypervolume())


def test_the_scale_of_objectives_does_not_matter():
    class Small(Landscape):
        def evaluate(self, config, fidelity):
            found = super().evaluate(config, fidelity)
            return moopt.Evaluation({name: value * 2.0**-30 for name, value in found.values.items()})

    plain, small = (evaluated(drive(NSGA3(8), kind(objectives=4), 60)) for kind in (Landscape, Small))
    assert plain == small


def test_infeasible_parents_lose_against_feasible_ones():
    problem = Landscape(LEVELS, constraint="measured")
    jobs = evaluated(drive(NSGA3(10), problem, 200))
    means = [problem.evaluate(job.config, job.fidelity).values["mean"] for job in jobs]
    assert np.mean(np.array(means[:10]) <= 0.6) < np.mean(np.array(means[-50:]) <= 0.6)
