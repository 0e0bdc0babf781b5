import os
from collections.abc import Iterator

import pytest
import ray

import moopt
from moopt.algorithms import Random
from moopt.executors.ray_cluster import RayExecutor
from moopt.problem import Problem, Resources
from moopt.testing.executors import IsolatedExecutorSuite
from moopt.testing.landscapes import Landscape


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A real cluster on this machine, for the tests of this file."""
    os.environ["PYTHONPATH"] = os.pathsep.join(["kernels", "problems", os.getcwd(), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
class TestRay(IsolatedExecutorSuite):
    def executor(self, problem: Problem, workers: int, timeout: float | None = None) -> RayExecutor:
        return RayExecutor(problem, Resources(), workers, timeout)


@pytest.mark.filterwarnings("ignore")
def test_a_study_runs_on_a_cluster():
    study = moopt.Study("s", Landscape(), Random()).run(12, workers=3, executor="ray")
    assert {trial.state for trial in study.history.trials} == {"complete"}
