"""AMQ's search (Lee et al. 2025) as described: NSGA-II on a cubic RBF of what was measured, picks along the front.

Its pinning of sensitive layers is left out: it needs a pass over the model that these problems do not sell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.optimize import minimize
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scipy.interpolate import RBFInterpolator

from moopt.bench.peers.base import FloatArray, Peer
from moopt.errors import StudyError
from moopt.space import Config

START, ROUND = 0.2, 50
"""The share of evaluations that are random (250 of 10,250 in the paper), and the evaluations of a round."""
POPULATION, GENERATIONS, CROSSOVER, MUTATION = 200, 20, 0.9, 0.1


class AMQLoop(Peer):
    """Random candidates first; then rounds of a surrogate, evolution on it, and picks spread evenly over sizes."""

    def start(self) -> None:
        space = self.problem.space
        if not space.discrete.all() or len(self.problem.objectives) != 2 or not self.problem.objectives[1].known:
            raise StudyError("amq searches discrete decisions, with one measured objective and then a known one.")
        self._rng = np.random.default_rng(self.seed)
        count = max(int(self.evaluations * START) - len(self.baselines), 2)
        self._queue = [*self.baselines, *(space.sample(self._rng) for _ in range(count))]
        self._rows: list[FloatArray] = []
        self._values: list[FloatArray] = []

    def suggest(self) -> Config:
        if not self._queue:
            self._queue = self._round()
        return self._queue.pop(0)

    def learn(self, config: Config, objectives: FloatArray, constraints: FloatArray) -> None:
        self._rows.append(self.problem.space.encode(config))
        self._values.append(objectives)

    def _round(self) -> list[Config]:
        """What is evaluated next: of the predicted front, as evenly over the sizes as it goes."""
        rows, values = np.array(self._rows), np.array(self._values)
        few = len(rows) <= rows.shape[1] + 1  # a cubic RBF needs a linear tail
        fit = RBFInterpolator(
            rows, values[:, 0], kernel="linear" if few else "cubic", degree=0 if few else 1, smoothing=1e-6
        )
        space, known = self.problem.space, self.problem.objectives[1]

        class Predicted(PymooProblem):  # type: ignore[misc]
            def _evaluate(inner, X: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
                sizes = [self.problem.known(space.decode(row))[known.name] * known.sign for row in X]
                out["F"] = np.column_stack([fit(X), sizes])

        best = rows[NonDominatedSorting().do(values, only_non_dominated_front=True)]
        more = [space.encode(space.sample(self._rng)) for _ in range(max(POPULATION - len(best), 0))]
        algorithm = NSGA2(
            POPULATION, sampling=np.vstack([best, *more])[:POPULATION],
            crossover=SBX(prob=CROSSOVER, repair=RoundingRepair()),
            mutation=PM(prob_var=MUTATION, repair=RoundingRepair()),
        )  # fmt: skip
        predicted = Predicted(n_var=len(space), n_obj=2, xl=space.lower, xu=space.upper)
        found = minimize(predicted, algorithm, ("n_gen", GENERATIONS), seed=int(self._rng.integers(2**31)))
        seen = {row.tobytes() for row in rows}
        fresh = [(x, f) for x, f in zip(np.atleast_2d(found.X), np.atleast_2d(found.F), strict=True)
                 if np.asarray(x, dtype=float).tobytes() not in seen]  # fmt: skip
        if not fresh:
            return [space.sample(self._rng) for _ in range(ROUND)]
        fresh.sort(key=lambda pair: float(pair[1][1]))
        places = np.unique(np.linspace(0, len(fresh) - 1, ROUND).round().astype(int))
        return [space.decode(np.asarray(fresh[i][0], dtype=float)) for i in places]
