"""carps drives our algorithms, if it is installed; else the error says how to install it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from moopt.errors import AlgorithmError

HERE = importlib.util.find_spec("carps") is not None


def test_without_carps_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "moopt.bench.carps", raising=False)
    monkeypatch.setitem(sys.modules, "carps", None)
    monkeypatch.setitem(sys.modules, "carps.optimizers.optimizer", None)
    with pytest.raises(AlgorithmError, match=r"needs carps.*pip install -e '\.\[carps\]' in the clone"):
        importlib.import_module("moopt.bench.carps")


def task(objectives: int, **hyperparameters: Any) -> Any:
    """A task of carps: sums of squares, to be minimised."""
    from carps.objective_functions.objective_function import ObjectiveFunction
    from carps.utils import task as tasks
    from carps.utils.trials import TrialValue
    from ConfigSpace import ConfigurationSpace

    space = ConfigurationSpace(space=hyperparameters)

    class Squares(ObjectiveFunction):
        configspace = space

        def _evaluate(self, trial_info: Any) -> Any:
            numbers = [v if isinstance(v, (int, float)) else len(v) for v in trial_info.config.values()]
            costs = [sum((n - j) ** 2 for n in numbers) for j in range(objectives)]
            return TrialValue(cost=costs if objectives > 1 else costs[0])

    return tasks.Task(
        name="squares", objective_function=Squares(), input_space=tasks.InputSpace(space),
        output_space=tasks.OutputSpace(objectives, tuple(f"f{j}" for j in range(objectives))),
        optimization_resources=tasks.OptimizationResources(n_trials=60), metadata=tasks.TaskMetadata(),
    )  # fmt: skip


@pytest.mark.skipif(not HERE, reason="carps is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objectives", [1, 2])
def test_carps_runs_its_task_to_the_end(objectives: int) -> None:
    from ConfigSpace import Constant, Float, Integer, OrdinalHyperparameter

    from moopt.bench.carps import CarpsOptimizer

    space = {
        "x": Float("x", (0.1, 4.0), log=True), "n": Integer("n", (0, 5)), "c": ["a", "bb", "ccc"],
        "o": OrdinalHyperparameter("o", ["low", "middle", "high"]), "k": Constant("k", 1),
    }  # fmt: skip
    optimizer = CarpsOptimizer(task(objectives, **space), "nsga2@population_size=12", seed=1)
    found = optimizer.run()
    assert optimizer.trial_counter == 60
    if objectives == 1:
        assert found[1].cost <= min(value.cost for _, value in optimizer._told)
    else:
        assert len(found) > 1
    assert optimizer.get_current_incumbent() is not None
