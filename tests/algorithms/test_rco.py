"""RCO: near the exact knapsack where that is the answer, within every budget, exact on replay, never stuck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moopt
from moopt.algorithms import RCO
from moopt.budgets import Knapsack
from moopt.errors import AlgorithmError, CapabilityError
from moopt.testing.algorithms import drive, evaluated, replays
from moopt.testing.landscapes import Landscape
from moopt_problems.synthetic import BitToy


class Untold(BitToy):
    """Gives gradients and no sensitivities: the search has to find everything."""

    sensitivities = None  # type: ignore[assignment]


class NoGradient(BitToy):
    def gradient(self, config: moopt.Config, fidelity: moopt.Fidelity) -> tuple[object, object, object]:  # type: ignore[override]
        raise RuntimeError("no gradient today")


def quick(budgets: list[int] | None = None) -> RCO:
    return RCO(budgets, steps=40, samples=2, tokens=512)


def test_it_comes_near_the_exact_knapsack_from_gradients_alone() -> None:
    problem = Untold(20)
    costs = problem.costs()
    exact = Knapsack(problem._table, costs)
    budget = (exact.least + exact.most) // 2
    history = moopt.Study("toy", problem, RCO([budget], steps=100, samples=2)).run(11).history
    best = history.pick(f"size <= {budget / 8}")
    worst, optimum = (problem._table[np.arange(20), c].sum() for c in (np.zeros(20, int), exact.at(budget)))
    assert worst - best.values["loss"] > 0.99 * (worst - optimum)


def test_what_is_linearised_and_what_is_decided_keeps_its_budget() -> None:
    problem = BitToy(8, interaction=1.0)
    algorithm = quick()
    log = drive(algorithm, problem, 500)
    jobs = [job for entry in log if not isinstance(entry, tuple) for job in entry]
    gradients = [job for job in jobs if job.kind == "gradient"]
    assert {job.note["budget"] for job in gradients} == set(algorithm._amounts)
    for job in gradients:
        assert problem.known(job.config)["size"] * 8 <= job.note["budget"]
    assert len({job.identity for job in gradients}) == len(gradients)
    configs = [problem.space.key(job.config) for job in evaluated(log)]
    assert len(configs) == len(set(configs))


@pytest.mark.parametrize("workers", [1, 3])
def test_replay_at_any_point_asks_the_same(workers: int) -> None:
    replays(quick, BitToy(8, interaction=1.0), trials=120, workers=workers, every=17)


def test_a_study_resumes_in_the_middle_of_a_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole = moopt.Study("toy", BitToy(8, interaction=1.0), quick(), None, seed=3).run(12).history
    path = tmp_path / "toy.journal"
    for trials in (3, 7, 12):
        parts = moopt.Study("toy", BitToy(8, interaction=1.0), quick(), path, seed=3).run(trials).history
    assert [t.config for t in parts.trials] == [t.config for t in whole.trials]
    jobs = [event.job for event in parts.events if event.job.kind == "gradient"]
    assert jobs == [event.job for event in whole.events if event.job.kind == "gradient"]
    assert all(job.config for job in jobs)


@pytest.mark.parametrize("problem", [NoGradient(8), BitToy(3)], ids=["no gradient", "little to find"])
def test_it_goes_on_where_gradients_fail_or_all_is_found(problem: BitToy) -> None:
    history = moopt.Study("toy", problem, quick()).run(25).history
    assert len(history.trials) == 25


def test_it_says_about_how_many_gradients_it_will_take() -> None:
    assert quick().extra_jobs(BitToy(8), 10) == {"gradient": (0, 512)}
    assert quick([700]).extra_jobs(BitToy(8), 500) == {"gradient": (80, 512)}
    taken = drive(quick(), BitToy(8, interaction=1.0), 500)
    gradients = sum(isinstance(entry, tuple) and entry[0].kind == "gradient" for entry in taken)
    assert 0.5 * gradients < quick().extra_jobs(BitToy(8), 500)["gradient"][0] < 2 * gradients


def test_what_it_cannot_search_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"RCO needs what Landscape lacks: costs .*gradient"):
        moopt.Study("toy", Landscape(), "rco")
    with pytest.raises(AlgorithmError, match=r"RCO has the budgets \[1\]; expected costs between"):
        moopt.Study("toy", BitToy(8), RCO(budgets=[1])).run(5)
    with pytest.raises(AlgorithmError, match="expected 0 < cold <= hot"):
        RCO(hot=0.1, cold=1.0)
    with pytest.raises(AlgorithmError, match="samples is 0; expected a whole number above 0"):
        RCO(samples=0)


def test_the_benchmark_beside_penalties_holds_at_a_small_size() -> None:
    script = Path(__file__).parents[2] / "studies" / "benchmarks" / "knapsacks.py"
    command = [sys.executable, str(script), "--groups", "12", "--seeds", "1"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("PASS 12 groups") == 3
