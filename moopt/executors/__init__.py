"""Where jobs run. The contract is `Executor`; one file a kind."""

from moopt.executors.base import Executor
from moopt.executors.inline import InlineExecutor

__all__ = ["Executor", "InlineExecutor"]
