from collections import Counter

import numpy as np
import pytest

import moopt
from moopt.algorithms import NSGA2, Algorithm, Random
from moopt.jobs import perform
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated
from moopt.testing.landscapes import LEVELS, TINY, Landscape
from moopt_problems.synthetic import BitToy, PymooFunction


class TestNSGA2(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return NSGA2(population_size=8)


def issue(algorithm: Algorithm, n: int) -> list:
    """Ask for n jobs, as often as it takes, and issue them."""
    jobs: list = []
    while len(jobs) < n:
        asked = algorithm.ask(n - len(jobs))
        algorithm.issued(asked)
        jobs += asked
    return jobs


def test_a_generation_does_not_change_once_it_has_begun():
    problem = Landscape()
    told_all, told_none = NSGA2(8), NSGA2(8)
    for algorithm in (told_all, told_none):
        algorithm.start(problem, 0)
        algorithm.tell([(job, perform(problem, job)) for job in issue(algorithm, 8)])
        first = issue(algorithm, 1)
    told_all.tell([(first[0], perform(problem, first[0]))])
    assert told_all.ask(7) == told_none.ask(7)


def test_a_generation_is_counted_from_issued_trials():
    algorithm, problem = NSGA2(8), Landscape()
    algorithm.start(problem, 0)
    jobs = issue(algorithm, 8)
    algorithm.tell([(job, perform(problem, job)) for job in jobs[:4]])  # four workers are still busy
    offspring = algorithm.ask(8)
    assert len(offspring) == 8
    algorithm.tell([(job, perform(problem, job)) for job in jobs[4:]])
    assert algorithm.ask(8) != offspring, "nothing of the generation was issued: it is planned from what is known now"


def test_the_first_population_covers_what_is_known_and_counts_the_opening():
    study = moopt.Study("s", BitToy(40), NSGA2(30)).run(30)
    sizes = np.sort([trial.values["size"] for trial in study.history.trials])
    uniform = [t.values["size"] for t in moopt.Study("s", BitToy(40), Random()).run(30).history.trials if not t.label]
    assert Counter(trial.label is None for trial in study.history.trials) == {True: 25, False: 5}
    assert np.diff(sizes).max() < 0.15 * np.ptp(sizes)
    assert np.ptp(uniform) < 0.5 * np.ptp(sizes)


class Scaled(moopt.Problem):
    """Six candidates with the losses -1 to 1.5, on a logarithmic scale."""

    space = TINY
    objectives = (moopt.Objective("loss", scale="log"),)

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"loss": config["bits"] - 3 + (config["kind"] == "b") / 2})


def test_losses_of_zero_and_below_keep_their_order_on_a_logarithmic_scale():
    algorithm = NSGA2(2)
    drive(algorithm, Scaled(), 6)
    kept = algorithm.survivors(np.arange(6), np.random.default_rng(0)).places
    assert sorted(algorithm.archive.values[i][0] for i in kept) == [-1.0, -0.5]


def test_offspring_use_the_moves_of_the_problem():
    class Marked(Landscape):
        calls = 0

        def moves(self, config, rng):
            self.calls += 1
            return {**config, "layer0": 8 if config["layer0"] == 2 else 2}

    problem = Marked()
    drive(NSGA2(8), problem, 40)
    assert problem.calls >= 8


def test_offspring_of_equal_parents_move_by_whole_levels():
    space = moopt.Space({f"n{i}": moopt.Integer(0, 100) for i in range(4)} | {"kind": moopt.Choice("a", "b", "c")})

    class Point(Landscape):
        def baselines(self):
            return {str(n): {**dict.fromkeys(space, n), "kind": "a"} for n in (50, 51)}

    study = moopt.Study("s", Point(space), NSGA2(2)).run(40)
    children = [trial.config for trial in study.history.trials[2:]]
    assert {child["kind"] for child in children} == {"a", "b", "c"}
    assert all(space.validate(child) == child for child in children)


def test_infeasible_parents_lose_against_feasible_ones():
    problem = Landscape(LEVELS, constraint="measured")
    jobs = evaluated(drive(NSGA2(10), problem, 200))
    means = [problem.evaluate(job.config, job.fidelity).values["mean"] for job in jobs]
    assert np.mean(np.array(means[:10]) <= 0.6) < np.mean(np.array(means[-50:]) <= 0.6)


@pytest.mark.parametrize(
    "problem",
    [BitToy(30), PymooFunction("zdt1", 10), PymooFunction("dtlz2", 7, 3)],
    ids=["bits", "zdt1", "dtlz2"],
)
def test_it_beats_random_search(problem: moopt.Problem):
    reference = {"loss": 0.1, "size": 1200.0} if isinstance(problem, BitToy) else None
    nsga2, random = (moopt.Study("s", problem, a).run(400).hypervolume(reference) for a in (NSGA2(20), Random()))
    assert nsga2 > 1.1 * random


class Apart(NSGA2):
    """Mates whoever won."""

    def start(self, problem: moopt.Problem, seed: int) -> None:
        super().start(problem, seed)
        self._sorted_by = None


@pytest.mark.parametrize("seed", range(3))
def test_mates_of_about_one_size_come_nearer_to_the_front(seed: int):
    near, apart = (
        moopt.Study("toy", BitToy(30), make(50), seed=seed).run(1_500).hypervolume() for make in (NSGA2, Apart)
    )
    assert near > apart


def test_what_is_no_list_of_levels_or_has_no_known_objective_is_mated_as_ever():
    for problem in (PymooFunction("zdt1", 8), Landscape(LEVELS)):
        near, apart = NSGA2(8), Apart(8)
        assert drive(near, problem, 40) == drive(apart, problem, 40)
