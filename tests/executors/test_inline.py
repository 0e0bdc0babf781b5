from moopt.executors import Executor, InlineExecutor
from moopt.problem import Problem, Resources
from moopt.testing.executors import ExecutorSuite


class TestInline(ExecutorSuite):
    def executor(self, problem: Problem, workers: int, timeout: float | None = None) -> Executor:
        return InlineExecutor(problem, Resources())
