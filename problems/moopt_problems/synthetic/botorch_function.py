"""Continuous test functions as botorch defines them, with the reference points and hypervolumes it states."""

from __future__ import annotations

import inspect
from typing import Literal

import torch
from botorch.test_functions import multi_objective
from botorch.test_functions.base import ConstrainedBaseTestProblem, MultiObjectiveTestProblem

import moopt
from moopt.errors import ProblemError

FUNCTIONS = tuple(
    name
    for name, value in vars(multi_objective).items()
    if inspect.isclass(value) and issubclass(value, MultiObjectiveTestProblem) and not inspect.isabstract(value)
)
"""The names of botorch's classes."""


class BotorchFunction(moopt.Problem):
    """A test function: variables x0, x1, ..., objectives f0, f1, ... to minimise, constraints g0, g1, ...

    Args:
        function: One of `FUNCTIONS`, such as "BraninCurrin", "ConstrainedBraninCurrin" or "C2DTLZ2".
        variables: How many variables, d, where the function leaves that open.
        objectives: How many objectives, m, where the function leaves that open.
    """

    def __init__(
        self, function: str = "BraninCurrin", variables: int | None = None, objectives: int | None = None
    ) -> None:
        if function not in FUNCTIONS:
            raise ProblemError(f"botorch has no test function {function!r}; expected one of {', '.join(FUNCTIONS)}.")
        kind = getattr(multi_objective, function)
        asked = {"dim": variables, "num_objectives": objectives}
        given = {key: value for key, value in asked.items() if value is not None}
        if unknown := sorted(set(given) - set(inspect.signature(kind).parameters)):
            raise ProblemError(f"{function} has no open {', '.join(unknown)}; leave it out.")
        self.function = function
        self.botorch: MultiObjectiveTestProblem = kind(**given, dtype=torch.double)
        direction: Literal["min", "max"] = "min" if kind._is_minimization_by_default else "max"
        low, high = self.botorch.bounds.tolist()
        self.space = moopt.Space({f"x{i}": moopt.Float(*ends) for i, ends in enumerate(zip(low, high, strict=True))})
        self.objectives = tuple(
            moopt.Objective(f"f{j}", direction, reference=worst)
            for j, worst in enumerate(self.botorch.ref_point.tolist())
        )
        constrained = isinstance(self.botorch, ConstrainedBaseTestProblem)
        count = self.botorch.num_constraints if constrained else 0
        self.constraints = tuple(moopt.Constraint(f"g{k}", 0.0) for k in range(count))

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        row = torch.from_numpy(self.space.encode(config))[None]
        values = {f"f{j}": float(value) for j, value in enumerate(self.botorch(row)[0])}
        if isinstance(self.botorch, ConstrainedBaseTestProblem):
            values |= {f"g{k}": -float(slack) for k, slack in enumerate(self.botorch.evaluate_slack(row)[0])}
        return moopt.Evaluation(values)

    def maximum_hypervolume(self) -> float | None:
        """The hypervolume of the whole front up to the objectives' references, where botorch states it."""
        try:
            return float(self.botorch.max_hv)
        except NotImplementedError:
            return None

    def arguments(self) -> dict[str, object]:
        """The constructor's arguments."""
        parameters = inspect.signature(type(self.botorch)).parameters
        return {
            "function": self.function,
            "variables": len(self.space) if "dim" in parameters else None,
            "objectives": len(self.objectives) if "num_objectives" in parameters else None,
        }

    def fingerprint(self) -> dict[str, dict[str, object]]:
        return {"identity": {"problem": f"botorch {self.function}"}, "environment": {}}
