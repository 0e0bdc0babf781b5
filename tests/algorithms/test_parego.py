import logging

import numpy as np

import moopt
from moopt.algorithms import Algorithm, ParEGO, Random
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated
from moopt.testing.landscapes import LEVELS, MIXED, Landscape
from moopt_problems.synthetic import PymooFunction


class TestParEGO(AlgorithmSuite):
    trials = 12

    def algorithm(self) -> Algorithm:
        return ParEGO(opening=8, candidates=30)


def test_it_needs_fewer_trials_than_random_search():
    problem = PymooFunction("zdt1", 4)
    ours, random = (moopt.Study("s", problem, a).run(40).hypervolume() for a in (ParEGO(12, 200), Random()))
    assert ours > 1.3 * random


def test_a_process_that_cannot_be_fitted_is_said_and_does_not_stop_the_search(monkeypatch, caplog):
    def fail(*arguments, **options):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr("moopt.surrogates.gaussian.cholesky", fail)
    with caplog.at_level(logging.WARNING, logger="moopt"):
        assert len(evaluated(drive(ParEGO(5), Landscape(), 8))) == 8
    assert (
        "ParEGO fits no Gaussian process to 5 trials and goes on at random: A Gaussian process cannot be fitted"
        in caplog.text
    )


def test_what_is_pending_counts_as_if_it_had_been_told():
    problem = Landscape(MIXED)
    algorithm = ParEGO(opening=10, candidates=100)
    drive(algorithm, problem, 12)
    rows = np.array([MIXED.encode(job.config) for job in algorithm.ask(6)])
    assert len(np.unique(rows, axis=0)) == 6


def test_infeasible_trials_are_worse_than_all_others():
    problem = Landscape(LEVELS, constraint="measured", bound=0.4)
    jobs = evaluated(drive(ParEGO(opening=10, candidates=100), problem, 25))
    feasible = [problem.evaluate(job.config, job.fidelity).values["mean"] <= 0.4 for job in jobs]
    assert np.mean(feasible[:10]) < np.mean(feasible[10:])


def test_a_space_without_choice_is_exhausted():
    space = moopt.Space({"only": moopt.Ordinal(4), "bits": moopt.Ordinal(2, 3, 4)})
    assert len(evaluated(drive(ParEGO(opening=1), Landscape(space), 10))) == 3
