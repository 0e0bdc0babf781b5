"""EvoPress: exact budgets, screens on shared fresh text, an elitist parent, exact on replay and when it is resumed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moopt
from moopt.algorithms import EvoPress
from moopt.algorithms.switches import Switches
from moopt.errors import AlgorithmError, StudyError
from moopt.jobs import Job
from moopt.testing.algorithms import drive, replays
from moopt.testing.landscapes import Landscape, Sequences
from moopt_problems.synthetic import BitToy


def jobs(log: list[object]) -> list[Job]:
    return [job for entry in log if not isinstance(entry, tuple) for job in entry]  # type: ignore[attr-defined]


@given(st.integers(0, 10_000))
def test_a_switch_keeps_the_budget_and_equal_steps_pay_for_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = np.cumsum(rng.integers(1, 5, (6, 4)), axis=1)
    costs[0, 3] = -1
    choice = rng.integers(0, 3, 6)
    budget = int(costs[np.arange(6), choice].sum() + rng.integers(0, 3))
    for _ in range(5):
        found = Switches(costs).draw(choice, budget, rng)
        assert (costs[np.arange(6), found] >= 0).all()
        assert costs[np.arange(6), found].sum() <= budget


def test_switches_between_equal_sizes_keep_the_cost_to_the_unit() -> None:
    costs, rng = np.tile([2, 3, 4, 8], (20, 1)), np.random.default_rng(0)
    choice = np.ones(20, dtype=int)
    drawn = [Switches(costs).draw(choice, 60, rng) for _ in range(50)]
    assert {int(costs[np.arange(20), each].sum()) for each in drawn} <= {60}
    assert {int((each != choice).sum()) for each in drawn} == {2, 4, 6}


def test_offspring_of_a_stage_share_a_minibatch_that_is_new_to_them() -> None:
    problem = Sequences()
    log = jobs(drive(EvoPress([40], offspring=8), problem, 120))
    screens = [job for job in log if job.kind == "screen"]
    stages = defaultdict(list)
    for job in screens:
        stages[job.note["generation"], job.note["stage"]].append(job)
    whole = [stages[key] for key in sorted(stages)][:9]
    assert [len(stage) for stage in whole] == [8, 2, 2] * 3
    assert all(len({job.fidelity for job in stage}) == 1 for stage in whole)
    assert [stage[0].fidelity.tokens for stage in whole] == [1, 4, 16] * 3
    assert len({stage[0].fidelity.batch for stage in whole}) == 3
    assert all(problem.known(job.config)["size"] <= 40 for job in screens)


def test_it_improves_on_its_start_at_every_budget_and_prunes_what_it_leaves() -> None:
    problem = Sequences()
    history = moopt.Study("s", problem, EvoPress(offspring=8)).run(tokens=3000).history
    uniform = {trial.label: trial for trial in history.trials if trial.label}
    for label in ("uniform-3", "uniform-4", "uniform-6"):
        before = uniform[label]
        assert history.pick(f"size <= {before.values['size']}").values["loss"] < 0.8 * before.values["loss"]
    states = [trial.state for trial in history.trials]
    assert states.count("pruned") > 5 * states.count("complete")
    assert "failed" not in states
    assert len(problem.evaluated) == len(set(problem.evaluated)), "something was evaluated twice at one fidelity"


def test_without_rungs_offspring_are_evaluated_and_the_best_is_the_next_parent() -> None:
    problem = BitToy(12, sensitivities=False)
    history = moopt.Study("toy", problem, EvoPress()).run(300).history
    assert {event.job.kind for event in history.events} == {"evaluate"}
    uniform = {t.label: t for t in history.trials if t.label}["3 bits"]
    assert history.pick(f"size <= {uniform.values['size']}").values["loss"] < 0.7 * uniform.values["loss"]


@pytest.mark.parametrize("workers", [1, 3])
def test_replay_at_any_point_asks_the_same(workers: int) -> None:
    replays(lambda: EvoPress(offspring=5), Sequences(6), trials=150, workers=workers, every=13)


@pytest.mark.parametrize(("stop", "kind"), [(9, "journal"), (23, "journal"), (60, "journal"), (30, "sqlite")])
def test_a_study_that_is_cut_short_goes_on_as_if_it_had_not_been(tmp_path: Path, stop: int, kind: str) -> None:
    def study(path: Path) -> moopt.Study:
        place = path if kind == "journal" else f"sqlite:///{path}.db"
        return moopt.Study("s", Sequences(6), EvoPress(offspring=5), place, seed=1)

    class Cut(Exception):
        pass

    def cut(history: object, event: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Cut

    left = stop
    with pytest.raises(Cut):
        study(tmp_path / "cut.journal").run(tokens=900, watch=cut)
    resumed = study(tmp_path / "cut.journal").run(tokens=900).history
    whole = study(tmp_path / "whole.journal").run(tokens=900).history
    assert [(t.config, t.state, t.values) for t in resumed.trials] == [
        (t.config, t.state, t.values) for t in whole.trials
    ]
    assert resumed.tokens == whole.tokens


def test_trials_are_counted_where_they_are_complete(tmp_path: Path) -> None:
    study = moopt.Study("s", Sequences(), EvoPress(offspring=8), tmp_path / "s.journal").run(trials=12)
    assert sum(trial.state == "complete" for trial in study.history.trials) == 12
    again = moopt.Study("s", Sequences(), EvoPress(offspring=8), tmp_path / "s.journal").run(trials=12)
    assert len(again.history.trials) == len(study.history.trials)


def test_a_budget_that_is_named_twice_is_one_and_nothing_costs_more_than_it() -> None:
    problem = Sequences(3)
    history = moopt.Study("s", problem, EvoPress([10, 10], offspring=4)).run(trials=40).history
    assert len(history.trials) > 20
    assert all(t.values["size"] <= 10 for t in history.trials if t.state == "complete" and not t.label)


def test_where_no_screen_can_be_had_the_parent_stays() -> None:
    class Failing(Sequences):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            if fidelity.batch:
                raise ArithmeticError("no")
            return super().evaluate(config, fidelity)

    algorithm = EvoPress([40], offspring=4)
    history = moopt.Study("s", Failing(), algorithm).run(tokens=150).history
    assert {t.label for t in history.trials if t.state == "complete"} == {f"uniform-{b}" for b in Sequences.bits}
    assert algorithm._lanes[0].parent is not None
    assert algorithm._lanes[0].parent.label == "uniform-4"
    with pytest.raises(StudyError, match=r"The last 100 screens of candidates failed, on .* tokens, .* with: .*no"):
        moopt.Study("s", Failing(), EvoPress([40], offspring=4)).run(trials=40)


def test_a_candidate_that_cannot_be_screened_is_pruned_and_the_search_goes_on() -> None:
    class Flaky(Sequences):
        def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
            if config["layer0"] == 8 and fidelity.batch:
                raise ArithmeticError("no")
            return super().evaluate(config, fidelity)

    history = moopt.Study("s", Flaky(), EvoPress(offspring=8)).run(tokens=2000).history
    assert not any(t.config["layer0"] == 8 for t in history.trials if t.state == "complete" and not t.label)
    assert sum(t.state == "complete" for t in history.trials) > 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"offspring": 0}, "offspring is 0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": 0}, "keep is 0"),
        ({"rungs": (4, 1)}, "ever more tokens"),
        ({"rungs": (0,)}, "a rung is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AlgorithmError, match=said):
        EvoPress(**settings)  # type: ignore[arg-type]


def test_a_rung_as_long_as_an_evaluation_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="last rung has 16 tokens; expected fewer than the problem's own 16"):
        EvoPress(rungs=(1, 16)).start(Sequences(), 0)


def test_a_problem_without_costs_is_refused() -> None:
    with pytest.raises(moopt.errors.CapabilityError, match="costs"):
        moopt.Study("s", Landscape(), EvoPress())
