"""MAP and its variants: the contract, fronts of smooth landscapes from few trials, warnings where models are wrong."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.algorithms import MAP, BayesianMAP, NestedMAP
from moopt.errors import AlgorithmError
from moopt.quadratics import terms
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated, replays


class TestMAP(AlgorithmSuite):
    trials = 20

    def algorithm(self) -> MAP:
        return MAP(samples=10, picks=6)


class TestBayesianMAP(AlgorithmSuite):
    trials = 20

    def algorithm(self) -> BayesianMAP:
        return BayesianMAP(samples=14, picks=6, batch=4)


class Smooth(moopt.Problem):
    """Accuracies that fall off around a point each: what merges of related models do."""

    def __init__(self, d: int = 2, tasks: int = 2, rough: float = 0.0) -> None:
        self.centres = np.clip(np.eye(d)[np.arange(tasks) % d] * 0.8 + 0.1, 0, 1)
        self.rough = rough
        self.space = moopt.Space({f"w{i}": moopt.Float(0, 1) for i in range(d)})
        self.objectives = [moopt.Objective(f"task-{i}", "max", reference=0.3) for i in range(tasks)]

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        x = np.array([config[n] for n in self.space.names])
        z = 2.5 - 4 * ((x - self.centres) ** 2).sum(1) + self.rough * np.sin(40 * x.sum())
        return moopt.Evaluation({f"task-{i}": float(v) for i, v in enumerate(1 / (1 + np.exp(-z)))})


def volume(problem: Smooth, jobs: list[Any]) -> float:
    values = [list(problem.evaluate(job.config, problem.fidelity).values.values()) for job in jobs]
    return pareto.hypervolume(-np.array(values), np.full(len(problem.objectives), -0.3))


@pytest.mark.parametrize("kind", [MAP, BayesianMAP])
@pytest.mark.parametrize("d", [2, 3])
def test_a_smooth_front_takes_twice_as_many_trials_as_there_are_coefficients(kind: Any, d: int):
    problem = Smooth(d, d)
    trials = 2 * terms(d) + 30 * (d - 1)
    found = volume(problem, evaluated(drive(kind(), problem, trials)))
    steps = np.linspace(0, 1, 21)
    grid = np.stack(np.meshgrid(*[steps] * d), -1).reshape(-1, d)
    values = [list(problem.evaluate(problem.space.decode(row), problem.fidelity).values.values()) for row in grid]
    exact = pareto.hypervolume(-np.array(values), np.full(d, -0.3))
    assert found >= 0.95 * exact


@pytest.mark.parametrize("kind", [partial(MAP, 14, 5), partial(BayesianMAP, 16, 5, 4), partial(NestedMAP, 8)])
@pytest.mark.parametrize("workers", [1, 3])
def test_replay_at_any_point_asks_the_same(kind: Any, workers: int):
    replays(kind, Smooth(3, 3), trials=26, workers=workers, every=9)


def test_models_tell_how_good_they_are(caplog: pytest.LogCaptureFixture):
    good, bad = MAP(picks=8), MAP(picks=8)
    with caplog.at_level(logging.WARNING, logger="moopt"):
        drive(good, Smooth(), 30)
    assert not caplog.records
    assert min(good.fits().values()) > 0.95
    with caplog.at_level(logging.WARNING, logger="moopt"):
        drive(bad, Smooth(rough=4.0), 30)
    said = [record.message for record in caplog.records if "R^2" in record.message]
    assert len(said) == len({message.split(" has an")[0] for message in said}) >= 1  # once a model
    assert min(bad.fits().values()) < 0.8


def test_samples_go_where_models_are_wrong():
    class Kinked(Smooth):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            x, y = config["w0"], config["w1"]
            rough = 0.3 * np.sin(25 * x) * (y < 0.5 * x)  # near the first axis only
            return moopt.Evaluation({"task-0": 0.5 + rough, "task-1": 0.5 + 0.2 * y})

    share = []
    for kind in (MAP, BayesianMAP):
        jobs = evaluated(drive(kind(samples=60), Kinked(), 60))[30:]
        share.append(np.mean([job.config["w1"] < 0.5 * job.config["w0"] for job in jobs]))
    assert share[1] > 1.5 * share[0]


def test_many_models_are_merged_two_at_a_time():
    problem, algorithm = Smooth(8, 8), NestedMAP(samples=20)
    jobs = evaluated(drive(algorithm, problem, 8 + 20 * 7 + 1))
    assert len(jobs) <= 20 * 8 * 3
    ones = [job.config for job in jobs[:8]]
    assert all(sorted(config.values()) == [0] * 7 + [1] for config in ones)
    pairs = [sum(v > 0 for v in job.config.values()) for job in jobs[8:88]]
    assert max(pairs) <= 2
    means = [np.mean(list(problem.evaluate(job.config, problem.fidelity).values.values())) for job in jobs]
    assert means[-1] >= max(means[:88])  # the merge of all beats every model and every pair


def test_the_next_preference_knows_the_pairs_already():
    log = drive(NestedMAP(samples=10), Smooth(4, 4), 4 + 30 + 1 + 12)
    later = evaluated(log)[35:]
    assert all(sum(v > 0 for v in job.config.values()) > 2 for job in later)


class Huge(Smooth):
    """Now and then a value that no model can have."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        found = dict(super().evaluate(config, fidelity).values)
        return moopt.Evaluation(found | {"task-0": 1e308 if config["w0"] > 0.8 else found["task-0"]})


@pytest.mark.parametrize(
    ("kind", "said"), [(MAP, "without a model"), (BayesianMAP, "without a model"), (NestedMAP, "no model")]
)
def test_what_cannot_be_modelled_stops_nothing(kind: Any, said: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="moopt"):
        assert len(evaluated(drive(kind(samples=10), Huge(), 20))) == 20
    assert any(said in record.message for record in caplog.records)


class Partly(Smooth):
    """Knows a size, but not of all candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.objectives = [*self.objectives, moopt.Objective("size", known=True)]

    def known(self, config: moopt.Config) -> dict[str, float]:
        if config["w0"] > 0.8:
            raise ValueError("of this one nothing is known")
        return {"size": config["w0"] + config["w1"]}


def test_candidates_that_nothing_is_known_of_stop_nothing():
    assert len(evaluated(drive(MAP(samples=10), Partly(), 30))) == 30


@pytest.mark.parametrize("kind", [MAP, BayesianMAP])
def test_bounds_steer_the_search_of_the_models(kind: Any):
    plain, steered = Smooth(), moopt.Preference(bounds={"task-0": 0.85})
    shares = []
    for preference in (None, steered):
        study = moopt.Study("x", plain, kind(samples=12, picks=10), preference=preference, seed=0)
        study.run(42)
        shares.append(np.mean([trial.values["task-0"] >= 0.85 for trial in study.history.trials[12:]]))
    assert shares[1] > shares[0] + 0.2


def test_pairs_are_made_of_all_models_by_themselves():
    alone = [evaluated(drive(NestedMAP(8), Smooth(4, 4), 20, workers=w)) for w in (1, 4)]
    pairs = [{tuple(np.flatnonzero(list(j.config.values()))) for j in jobs[4:20]} for jobs in alone]
    assert {p for p in pairs[0] if len(p) == 2} == {p for p in pairs[1] if len(p) == 2}


def test_what_they_cannot_search_is_said():
    with pytest.raises(AlgorithmError, match="one number from 0 to 1 a model and one measured objective"):
        drive(NestedMAP(), Smooth(3, 2), 1)
    with pytest.raises(AlgorithmError, match="needs 6 or more"):
        NestedMAP(samples=5)
    for wrong in ({"samples": 0}, {"picks": -1}):
        with pytest.raises(AlgorithmError, match="whole number above 0"):
            MAP(**wrong)
