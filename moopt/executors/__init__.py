"""Where jobs run. The contract is `Executor`; one file a kind, found by name; plug-ins by entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points

from moopt.errors import ExecutorError
from moopt.executors.base import Executor, JobFuture, WorkerState
from moopt.executors.inline import InlineExecutor
from moopt.problem import Problem, Resources

Factory = Callable[[Problem, Resources, int, float | None], Executor]
"""Makes an executor of a problem, the resources of a worker, the number of workers and the timeout in seconds."""

NAMES: Mapping[str, str] = {
    "inline": "moopt.executors.inline:in_this_process",
    "processes": "moopt.executors.processes:ProcessExecutor",
    "ray": "moopt.executors.ray_cluster:RayExecutor",
}
"""moopt's own executors by name; plug-ins add to them by the entry point `moopt.executors`."""

__all__ = ["Executor", "Factory", "InlineExecutor", "JobFuture", "NAMES", "WorkerState", "create"]


def create(name: str, problem: Problem, resources: Resources, workers: int, timeout: float | None) -> Executor:
    """The executor of that name, ready for jobs.

    Raises:
        ExecutorError: there is none of that name, or it cannot do what is asked.
        NotPortable: the problem cannot be rebuilt where the executor's workers are.
    """
    if name in NAMES:
        module, _, attribute = NAMES[name].partition(":")
        try:
            factory: Factory = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ExecutorError(f"The executor {name!r} needs a package more; run: pip install {error.name}") from error
        return factory(problem, resources, workers, timeout)
    plugins = {point.name: point for point in entry_points(group="moopt.executors")}
    if name not in plugins:
        raise ExecutorError(f"There is no executor {name!r}; expected one of {', '.join([*NAMES, *plugins])}.")
    made: Executor = plugins[name].load()(problem, resources, workers, timeout)
    return made
