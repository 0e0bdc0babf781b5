"""QNEHVI: the contract, and what is special to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.algorithms import QNEHVI, Algorithm
from moopt.budgets import Knapsack
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated, replay
from moopt.testing.landscapes import LEVELS, MIXED, Landscape
from moopt_problems.synthetic import BitToy, Noisy, PymooFunction


class TestContract(AlgorithmSuite):
    trials = 12

    def algorithm(self) -> Algorithm:
        return QNEHVI(initial=6)


class Bowl(moopt.Problem):
    """Two smooth objectives of mixed variables, the second known or not."""

    space = moopt.Space({"x": moopt.Float(0, 1), "n": moopt.Integer(0, 20), "kind": moopt.Choice("a", "b")})
    objectives = (moopt.Objective("near"), moopt.Objective("far"))

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        x, n = config["x"], config["n"] / 20
        penalty = 0.3 * (config["kind"] == "b")
        return moopt.Evaluation({"near": x**2 + n**2 + penalty, "far": (x - 1) ** 2 + (n - 1) ** 2 + penalty})


def hypervolume(problem: moopt.Problem, algorithm: Algorithm, trials: int, reference: Mapping[str, float]) -> float:
    return moopt.Study("s", problem, algorithm).run(trials).hypervolume(reference)


def test_it_beats_random_search_on_mixed_variables() -> None:
    reference = {"near": 2.0, "far": 2.0}
    ours, blind = (hypervolume(Bowl(), a, 24, reference) for a in (QNEHVI(), moopt.algorithms.Random()))
    assert ours > blind + 0.05


def test_it_finds_an_additive_front_in_a_few_dozen_trials() -> None:
    problem = BitToy(12)
    table, costs = problem.sensitivities("", 0), problem.costs()
    knapsack = Knapsack(table, costs)
    rows = np.arange(12)
    exact = [
        (table[rows, choice].sum(), costs[rows, choice].sum() / 8)
        for choice in (knapsack.at(budget) for budget in range(knapsack.least, knapsack.most + 1, 8))
    ]
    study = moopt.Study("s", problem, QNEHVI(prior=False)).run(40)
    values = study.history.values(study.history.feasible())
    reference = values[:5].max(axis=0)
    assert pareto.hypervolume(values, reference) > 0.97 * pareto.hypervolume(exact, reference)


def test_the_reference_point_is_inferred_once_and_stored() -> None:
    log = drive(QNEHVI(initial=6), Bowl(), 12)
    noted = [job for job in evaluated(log) if "reference" in job.note]
    assert [job.trial for job in noted] == [6]
    assert len(noted[0].note["reference"]) == 2


def test_a_declared_reference_point_is_kept() -> None:
    class Declared(Bowl):
        objectives = (moopt.Objective("near", reference=1.0), moopt.Objective("far", reference=1.5))

    log = drive(QNEHVI(initial=6), Declared(), 8)
    assert next(job.note["reference"] for job in evaluated(log) if job.note) == [1.0, 1.5]


def test_a_batch_is_not_one_candidate_eight_times() -> None:
    algorithm = QNEHVI(initial=6)
    drive(algorithm, Bowl(), 10)
    batch = algorithm.ask(8)
    xs = np.array([job.config["x"] for job in batch])
    assert len(batch) == 8
    assert np.ptp(xs) > 0.1


def test_what_cannot_be_modelled_is_said_and_searched_on(caplog: pytest.LogCaptureFixture) -> None:
    class Huge(Bowl):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            return moopt.Evaluation({"near": 1e308 * (1 if config["x"] < 0.5 else -1), "far": config["x"]})

    with caplog.at_level(logging.WARNING, logger="moopt"):
        assert len(evaluated(drive(QNEHVI(initial=6), Huge(), 12))) == 12
    assert "without a model" in caplog.text


def test_rounding_searches_numbers_and_never_repeats_a_candidate() -> None:
    log = drive(QNEHVI(initial=6, rounding=True), BitToy(5), 20)
    configs = [tuple(job.config.values()) for job in evaluated(log)]
    assert len(configs) == len(set(configs)) == 20


def test_what_is_lucky_is_not_taken_for_the_front_where_values_are_noisy() -> None:
    truth = PymooFunction("dtlz2", 3, 2)
    informed, blind = QNEHVI(), QNEHVI()
    drive(informed, Noisy(truth, share=0.1), 40)
    drive(blind, Noisy(truth, share=0.1, given=False), 40)
    assert blind.believed() is None
    believed = informed.believed()
    assert believed is not None
    exact = [truth.evaluate(job.config, truth.fidelity).values for job in informed.archive.jobs]
    true = pareto.minimised(exact, truth.objectives)
    errors = [np.abs(found - true).mean() for found in (believed, np.array(informed.archive.values))]
    assert errors[0] < 0.7 * errors[1]


class Partial(Landscape):
    """Nothing is known where the first decision is its least."""

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        if config[self.space.names[0]] in (2, -1):
            raise ValueError("no size")
        return super().known(config)


@pytest.mark.parametrize(("space", "objectives", "workers"), [(LEVELS, 3, 3), (LEVELS, 2, 3), (MIXED, 2, 1)])
def test_what_nothing_is_known_of_is_no_candidate(space: moopt.Space, objectives: int, workers: int) -> None:
    problem = Partial(space, objectives, known=True)
    log = drive(QNEHVI(initial=3), problem, 11, workers=workers)
    jobs = evaluated(log)
    assert len(jobs) == 11
    assert all(job.config[space.names[0]] != space.decode(space.lower)[space.names[0]] for job in jobs[-2:])


class Sampled(moopt.Problem):
    """A loss that is the mean over sequences, each of them hard for every candidate in its own way."""

    space = BitToy(6).space
    objectives = (moopt.Objective("loss"), moopt.Objective("size", known=True))

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {"size": float(sum(config.values()))}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        rng = np.random.default_rng(list(config.values()))
        losses = [np.exp(s / 2 - self.known(config)["size"] / 12 + 0.1 * rng.standard_normal()) for s in range(6)]
        return moopt.Evaluation({"loss": np.mean(losses)}, {"loss": np.var(losses) / 6}, {"loss": losses})


def test_what_was_told_decides_alone_however_late_a_surrogate_is_fitted() -> None:
    asked = QNEHVI()
    log = drive(asked, Sampled(), 23)
    again = replay(QNEHVI(), Sampled(), log)  # fits at 23 what the other fitted at 22
    assert [job.config for job in asked.ask(2)] == [job.config for job in again.ask(2)]


class Fails(Bowl):
    """Cannot be evaluated where the front would be best."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        if config["x"] < 0.4 and config["n"] < 8:
            raise MemoryError("too large")
        return super().evaluate(config, fidelity)


@pytest.mark.parametrize("make", [QNEHVI, moopt.algorithms.SurrogateEvolution])
def test_where_evaluations_fail_it_does_not_stay(make: type[Algorithm]) -> None:
    history = moopt.Study("s", Fails(), make(), seed=3).run(40).history
    failed = [trial.failure is not None for trial in history.trials[-20:]]
    assert sum(failed) <= 8


class Rare(Landscape):
    """A size that adds up but for one pair of options, which random probes do not meet."""

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        extra = 10.0 if config["layer0"] == config["layer1"] == config["layer2"] == config["layer3"] == 2 else 0.0
        return {name: value + extra for name, value in super().known(config).items()}


@pytest.mark.parametrize("make", [QNEHVI, moopt.algorithms.SurrogateEvolution])
def test_what_breaks_a_known_constraint_is_not_evaluated_where_tables_are_wrong(make: type[Algorithm]) -> None:
    problem = Rare(LEVELS, known=True, constraint="known")
    jobs = evaluated(drive(make(initial=6), problem, 25))  # type: ignore[call-arg]
    assert all(problem.known(job.config)["mean"] <= problem.constraints[0].bound for job in jobs)


def test_the_expected_improvement_is_that_of_many_draws() -> None:
    from moopt.acquisition import Improvement
    from moopt.algorithms.qnehvi import NORMALS, WEIGHTS

    rng = np.random.default_rng(0)
    front, corner = np.array([[0.2, 0.8, 0.5], [0.5, 0.4, 0.4], [0.9, 0.1, 0.3]]), np.ones(3)
    for m in (1, 2, 3):
        improvement = Improvement(front[None, :, :m], corner[:m])
        mean, deviation = rng.random((5, m)), 0.3 * rng.random((5, m))
        exact = improvement.expected(mean + NORMALS[:, None, None] * deviation, WEIGHTS)
        drawn = improvement.of(mean + rng.standard_normal((40_000, 5, m)) * deviation) if m == 1 else None
        many = np.concatenate([
            Improvement(np.repeat(front[None, :, :m], 1, 0), corner[:m]).of(
                mean + rng.standard_normal((1, 5, m)) * deviation
            )
            for _ in range(4000)
        ]) if drawn is None else drawn  # fmt: skip
        assert exact == pytest.approx(many.mean(axis=0), abs=0.01)
        far = improvement.expected(np.full((1, 1, m), 6.0) - 0.0 + NORMALS[:, None, None] * 1.0, WEIGHTS)
        assert far[0] > 0  # what hardly ever improves is still told apart from what never does
