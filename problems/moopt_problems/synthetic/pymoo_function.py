"""Continuous test functions as pymoo defines them, with fronts and hypervolumes that nothing is downloaded for."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pymoo.problems import get_problem
from scipy.stats import qmc

import moopt
from moopt import pareto
from moopt.errors import ProblemError

FloatArray = npt.NDArray[np.float64]

POINTS = 20_000
"""About how many points a computed front has before dominated ones are dropped."""


class _Function(NamedTuple):
    """What a function's front and hypervolume are computed from.

    Attributes:
        reference: The reference point's value for every objective but the last.
        rest: Where the front has the variables that only move away from it; None: pymoo samples the front itself.
        variables: How many variables it has by default; a fixed number where there is no `rest`.
        objectives: How many objectives it has by default.
    """

    reference: float = 1.1
    rest: float | None = 0.5
    variables: int = 12
    objectives: int = 3


FUNCTIONS = {
    "zdt1": _Function(rest=0.0, variables=30, objectives=2),
    "zdt2": _Function(rest=0.0, variables=30, objectives=2),
    "zdt3": _Function(rest=0.0, variables=30, objectives=2),
    "zdt4": _Function(rest=0.0, variables=10, objectives=2),
    "zdt6": _Function(rest=0.0, variables=10, objectives=2),
    "dtlz1": _Function(0.55),
    "dtlz2": _Function(),
    "dtlz3": _Function(),
    "dtlz4": _Function(),
    "dtlz5": _Function(),
    "dtlz6": _Function(rest=0.0),
    "dtlz7": _Function(rest=0.0),
    "c1dtlz1": _Function(0.55),
    "c2dtlz2": _Function(),
    "bnh": _Function(150.0, None, 2, 2),
    "srn": _Function(249.0, None, 2, 2),
}
"""The functions of Zitzler, Deb and Thiele (2000); of Deb, Thiele, Laumanns and Zitzler (2002); and with constraints,
of Jain and Deb (2014), of Binh and Korn (1997) and of Srinivas and Deb (1994)."""

LAST_REFERENCE = {"bnh": 55.0, "srn": 59.0}
"""The reference point's value for the last objective, where it is another one than for the others."""

CURVES = ("dtlz5", "dtlz6")
"""Functions whose front is a curve with up to three objectives, and not known beyond."""

SPHERES = ("dtlz2", "dtlz3", "dtlz4")
"""Functions whose front is the unit sphere's part with positive coordinates."""


class PymooFunction(moopt.Problem):
    """A continuous test function: variables x0, x1, ... and objectives f0, f1, ... to minimise; constraints g0, g1, ...

    Args:
        function: One of `FUNCTIONS`.
        variables: How many variables, d; None: as many as is usual for the function.
        objectives: How many objectives, m; None: as is usual. The ZDT functions have two.
    """

    def __init__(self, function: str, variables: int | None = None, objectives: int | None = None) -> None:
        if function not in FUNCTIONS:
            raise ProblemError(f"There is no test function {function!r}; expected one of {', '.join(FUNCTIONS)}.")
        usual = FUNCTIONS[function]
        d, m = variables or usual.variables, objectives or usual.objectives
        if "dtlz" not in function and m != 2:
            raise ProblemError(f"{function} has 2 objectives; got objectives={m}.")
        if function in CURVES and m > 3:
            raise ProblemError(f"{function} has no known front with more than 3 objectives; got objectives={m}.")
        if usual.rest is None and d != usual.variables:
            raise ProblemError(f"{function} has {usual.variables} variables; got variables={d}.")
        self.function = function
        shape = {} if usual.rest is None else {"n_var": d} | ({"n_obj": m} if "dtlz" in function else {})
        self.pymoo = get_problem(function, **shape)
        bounds = zip(self.pymoo.xl.tolist(), self.pymoo.xu.tolist(), strict=True)
        self.space = moopt.Space({f"x{i}": moopt.Float(low, high) for i, (low, high) in enumerate(bounds)})
        last = 2.2 * m if function == "dtlz7" else LAST_REFERENCE.get(function, usual.reference)
        references = [usual.reference] * (m - 1) + [last]
        self.objectives = tuple(moopt.Objective(f"f{j}", reference=worst) for j, worst in enumerate(references))
        self.constraints = tuple(moopt.Constraint(f"g{k}", 0.0) for k in range(self.pymoo.n_ieq_constr))

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        found, violations = self.pymoo.evaluate(self.space.encode(config), return_values_of=["F", "G"])
        values = {f"f{j}": float(value) for j, value in enumerate(found)}
        return moopt.Evaluation(values | {f"g{k}": float(value) for k, value in enumerate(violations)})

    def front(self) -> FloatArray:
        """Points of the Pareto front, [n, m]: the function at many points of its Pareto set."""
        m = len(self.objectives)
        rest = FUNCTIONS[self.function].rest
        if rest is None:
            return np.asarray(self.pymoo.pareto_front(n_points=POINTS), dtype=float)
        leading = np.repeat(_spread(1), m - 1, axis=1) if self.function in CURVES else _spread(m - 1)
        rows = np.column_stack([leading, np.full((len(leading), len(self.space) - m + 1), rest)])
        # dtlz4 is dtlz2 with its variables raised to a power that leaves next to no point on the front's middle
        function = get_problem("dtlz2", rows.shape[1], m) if self.function == "dtlz4" else self.pymoo
        values, violations = function.evaluate(rows, return_values_of=["F", "G"])
        values = np.asarray(values[(violations <= 1e-9).all(axis=1)], dtype=float)
        return values[pareto.nondominated(values)]

    def maximum_hypervolume(self) -> float:
        """The hypervolume of the whole front up to the objectives' references.

        Exact for dtlz1 to dtlz4 and c1dtlz1; else that of `front`, which is low by less than 0.01% where the front is a
        curve and by about 1% where it is a surface.
        """
        m = len(self.objectives)
        if self.function in SPHERES:
            return float(1.1**m - math.pi ** (m / 2) / math.gamma(m / 2 + 1) / 2**m)
        if self.function in ("dtlz1", "c1dtlz1"):
            return float(0.55**m - 0.5**m / math.factorial(m))
        return pareto.hypervolume(self.front(), np.array([o.reference for o in self.objectives], dtype=float))

    def arguments(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {"function": self.function, "variables": len(self.space), "objectives": len(self.objectives)}

    def fingerprint(self) -> dict[str, dict[str, object]]:
        return {"identity": {"problem": self.function}, "environment": {}}


def _spread(dimensions: int) -> FloatArray:
    """About `POINTS` points that fill the unit cube, its faces included up to two dimensions, [n, dimensions]."""
    if dimensions > 2:
        drawn: FloatArray = qmc.Sobol(dimensions, rng=0).random(2**14)
        return drawn
    axis = np.linspace(0.0, 1.0, round(POINTS ** (1 / dimensions)))
    return np.stack(np.meshgrid(*[axis] * dimensions), axis=-1).reshape(-1, dimensions)
