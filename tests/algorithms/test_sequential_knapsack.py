"""Steps from measured candidates: better than the opening, exact on replay, never stuck."""

from __future__ import annotations

import itertools
import re
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import moopt
from moopt.algorithms import SequentialKnapsack, suggest
from moopt.algorithms.sequential_knapsack import FEWEST
from moopt.errors import AlgorithmError, CapabilityError
from moopt.jobs import perform
from moopt.testing.algorithms import drive, evaluated, replays
from moopt.testing.landscapes import Landscape
from moopt_problems.synthetic import BitToy


class Tabled(BitToy):
    sensitivity = moopt.Fidelity(0, "exact")


class NoGradient(Tabled):
    def gradient(self, config: moopt.Config, fidelity: moopt.Fidelity) -> tuple[object, object, object]:  # type: ignore[override]
        raise RuntimeError("no gradient today")


class Failing(BitToy):
    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({"loss": float("nan")})


def test_steps_improve_on_the_additive_knapsack_where_layers_interact() -> None:
    problem = Tabled(12, interaction=300.0)
    study = moopt.Study("toy", problem, SequentialKnapsack()).run(40)
    history = study.history
    gains = []
    for opening in (t for t in history.trials if t.label and t.label.startswith("knapsack at")):
        best = history.pick(f"size <= {opening.values['size']}")
        gains.append(1 - best.values["loss"] / opening.values["loss"])
    assert max(gains) > 0.2
    assert len(history.trials) == 40


def test_every_candidate_keeps_a_budget() -> None:
    problem = BitToy(12, interaction=1.0)
    log = drive(SequentialKnapsack(budgets=[2000]), problem, 40)
    steps = [job for entry in log if not isinstance(entry, tuple) for job in entry if job.kind == "gradient"]
    assert steps
    keys = [problem.space.key(job.config) for job in evaluated(log)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("workers", [1, 3])
def test_replay_at_any_point_asks_the_same(workers: int) -> None:
    replays(SequentialKnapsack, BitToy(8, interaction=1.0), trials=30, workers=workers, every=5)


def test_a_step_serves_the_budget_it_was_begun_for_in_whatever_order_its_gradients_end() -> None:
    problem, algorithm = BitToy(8), SequentialKnapsack()
    algorithm.start(problem, 0)
    opening = algorithm.jobs(problem.baselines().values())
    algorithm.issued(opening)
    algorithm.tell([(job, perform(problem, job)) for job in opening])
    gradients = []
    for _ in range(2 * FEWEST):
        gradients += algorithm.ask(1)
        algorithm.issued(gradients[-1:])
    assert [job.kind for job in gradients] == ["gradient"] * len(gradients)
    assert len({job.fidelity for job in gradients}) == len(gradients)
    for step in (gradients[:FEWEST], gradients[FEWEST:]):
        assert len({job.note["budget"] for job in step}) == 1
    for job in reversed(gradients):
        before = [asked.config for asked in algorithm.ask(9)]
        algorithm.tell([(job, perform(problem, job))])
        at = job.note["budget"] / 8
        new = [asked.config for asked in algorithm.ask(9) if asked.config not in before]
        if job in (gradients[0], gradients[FEWEST]):
            assert 0.9 * at < min(costs(problem, new)) <= max(costs(problem, new)) <= at


def costs(problem: BitToy, configs: list[moopt.Config]) -> list[float]:
    return [problem.known(config)["size"] for config in configs]


@pytest.mark.parametrize("problem", [NoGradient(8), Failing(8)], ids=["no gradient", "nothing but failures"])
def test_failures_do_not_stop_it(problem: BitToy) -> None:
    study = moopt.Study("toy", problem, SequentialKnapsack()).run(25)
    assert len(study.history.trials) == 25


def test_the_table_fills_the_budgets_between_baselines_before_any_step() -> None:
    problem = Tabled(12, interaction=300.0)
    events = moopt.Study("toy", problem, SequentialKnapsack()).run(40).history.events
    step = next(place for place, event in enumerate(events) if event.job.kind == "gradient")
    before = [event.job for event in events[:step] if event.job.kind == "evaluate" and event.outcome is not None]
    sizes = np.unique(costs(problem, [job.config for job in before if job.label is None]))
    uniform = np.array(sorted(costs(problem, list(problem.baselines().values()))))
    inside = np.searchsorted(uniform, sizes)
    assert [(inside == gap).sum() for gap in range(1, len(uniform))] == [2] * (len(uniform) - 1)


def test_what_it_cannot_search_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"SequentialKnapsack needs what Landscape lacks: costs .*gradient"):
        moopt.Study("toy", Landscape(), "sequential-knapsack")
    with pytest.raises(AlgorithmError, match=r"has the budgets \[1\]; expected costs between"):
        moopt.Study("toy", BitToy(8), SequentialKnapsack(budgets=[1])).run(5)
    with pytest.raises(AlgorithmError, match="tokens is 0; expected a whole number above 0"):
        SequentialKnapsack(tokens=0)


class Bare(BitToy):
    """Has no baselines."""

    def baselines(self) -> dict[str, moopt.Config]:
        return {}


class Free(BitToy):
    """Measures nothing."""

    objectives = (moopt.Objective("loss", known=True), moopt.Objective("size", known=True))


class Two(BitToy):
    """Measures two objectives."""

    objectives = (moopt.Objective("loss"), moopt.Objective("size"))


class Equal(BitToy):
    """Whatever is chosen costs the same."""

    def costs(self) -> npt.NDArray[np.int64]:
        return np.ones_like(super().costs())


def test_without_baselines_its_budgets_lie_evenly() -> None:
    study = moopt.Study("toy", Bare(8), SequentialKnapsack()).run(25)
    assert len(study.history.trials) == 25
    assert any(event.job.kind == "gradient" for event in study.history.events)


def test_without_baselines_the_table_says_what_the_cheapest_is_worth() -> None:
    problem = Bare(8)
    problem.sensitivity = moopt.Fidelity(0, "exact")
    history = moopt.Study("toy", problem, SequentialKnapsack()).run(25).history
    assert min(trial.values["size"] for trial in history.trials) == problem.costs().min(axis=1).sum() / 8


@pytest.mark.parametrize("problem", [Free(8), Two(8), Equal(8)], ids=["nothing measured", "two measured", "one cost"])
def test_auto_takes_another_where_it_cannot_help(problem: BitToy) -> None:
    assert suggest(problem).name == "qnehvi"
    assert suggest(Bare(8)).name == "sequential-knapsack"


class Below(BitToy):
    """Loses the same less a constant, so that the loss falls below 0."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({"loss": super().evaluate(config, fidelity).values["loss"] - 1.0})


@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_below_zero_is_stepped_down_like_one_above(seed: int) -> None:
    logs = [drive(SequentialKnapsack(), make(12, interaction=300.0, seed=seed), 40) for make in (BitToy, Below)]
    above, below = (_steps_before_a_model(log) for log in logs)
    assert above == below > 1


def _steps_before_a_model(log: list[Any]) -> int:
    jobs = [entry[0] for entry in log if isinstance(entry, list)]
    alone = itertools.takewhile(lambda job: not isinstance(predicted(job), list), jobs)
    return sum(job.kind == "gradient" for job in alone) // FEWEST  # the last one may have been cut short


def test_a_model_goes_on_where_steps_gain_nothing_and_steps_again_from_what_it_finds() -> None:
    history = moopt.Study("both", Tabled(8, (2, 3, 4), interaction=3.0, seed=2), SequentialKnapsack()).run(40).history
    jobs = [event.job for event in history.events if event.outcome is not None]
    kinds = "".join("m" if isinstance(predicted(job), list) else job.kind[0] for job in jobs)
    assert re.search("ge*m+g+m", kinds)


def predicted(job: moopt.Job) -> object:
    """What was foretold of its loss: an interval by a model, a number by a table, or nothing."""
    return next(iter(job.note.get("predicted", {}).values()), None)


class Misled(Tabled):
    def sensitivities(self, method: str, tokens: int) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = super().sensitivities(method, tokens)[::-1]
        return found


def test_once_steps_gain_nothing_the_front_is_filled_between_the_budgets() -> None:
    problem = Misled(10)
    history, front = moopt.Study("toy", problem, SequentialKnapsack()).run(60).history, problem.front()
    uniform = sorted(costs(problem, list(problem.baselines().values())))
    between = [low + (high - low) * part / 4 for low, high in pairwise(uniform) for part in (1, 2, 3)]
    least = np.array([front[front[:, 1] <= size][:, 0].min() for size in between])
    found = np.array([history.pick(f"size <= {size}").values["loss"] for size in between])
    assert np.median(found / least) < 1.25
