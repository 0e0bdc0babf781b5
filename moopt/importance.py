"""Which decisions matter for which objective: how much each moves it around the front. Fits models, runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from moopt.acquisition import Known
from moopt.errors import NoFeasibleTrial, StudyError
from moopt.history import History, Trial
from moopt.problem import Evaluation, Problem
from moopt.space import Choice, Ordinal, Space, Variable
from moopt.surrogates import Data, features, fit

FloatArray = npt.NDArray[np.float64]
Model = Callable[[FloatArray], FloatArray]

LEAST_TRIALS = 8
"""Completed trials from which a model of them says something."""
MOST_CANDIDATES = 32
"""Candidates of the front that decisions are varied around; of a larger front so many, evenly."""
NUMBERS = 10
"""Values that are tried of a number."""
ROWS = 512
"""Candidates that a model is asked for at a time: its covariances grow with their square."""


def importance(problem: Problem, history: History) -> pd.DataFrame:
    """How much each decision moves each objective, around the front.

    A decision is given each of its options (ten values of a number) in a candidate of the front, all others kept; its
    importance is the standard deviation of what the objective then is, averaged over the front. Known objectives are
    exact, the others are the medians that the surrogate of the completed trials expects (see `moopt.surrogates`), so
    that noise and what is not understood do not count.

    Args:
        problem: What the study searches.
        history: What it has found.

    Returns:
        Decisions by objectives, each column in the objective's unit.

    Raises:
        StudyError: too few trials are complete.
        NoFeasibleTrial: there is no front.
        SurrogateError: an objective cannot be modelled.
    """
    completed = [trial for trial in history.trials if trial.state == "complete"]
    if len(completed) < LEAST_TRIALS:
        raise StudyError(
            f"{history.name!r} has {len(completed)} completed trials; expected {LEAST_TRIALS} or more, from which the "
            "importance of decisions can be told. Run it for longer."
        )
    if not (front := history.front()):
        raise NoFeasibleTrial(f"The study {history.name!r} has no complete and feasible trial yet.")
    chosen = np.linspace(0, len(front) - 1, min(len(front), MOST_CANDIDATES)).round().astype(int)
    parents = _codes(problem.space, [front[i] for i in chosen])
    found = _models(problem, history, completed)
    spreads = [[_spread(model, rows) for model in found.values()] for rows in _varied(problem.space, parents)]
    return pd.DataFrame(spreads, pd.Index(problem.space.names, name="decision"), list(found))


def _models(problem: Problem, history: History, completed: list[Trial]) -> dict[str, Model]:
    """Every objective's values [n] of candidates [n, d], signs turned or not: exact where known, else expected."""
    known, codes = Known(problem), _codes(problem.space, completed)
    first = next((o for o in problem.objectives if o.name not in known.names), None)
    found: dict[str, Model] = {}
    for objective in problem.objectives:
        if (name := objective.name) in known.names:
            found[name] = partial(_exact, known, name)
            continue
        values = np.array([trial.values[name] for trial in completed]) * objective.sign
        data = Data.of(codes, values, np.array([trial.variance(name) for trial in completed]))
        prior = _prior(history) if objective == first else None
        found[name] = fit(data, problem.space, prior, features(problem)).mean
    return found


def _exact(known: Known, name: str, rows: FloatArray) -> FloatArray:
    return known.values(rows)[name]


def _prior(history: History) -> FloatArray | None:
    """The problem's sensitivities [decisions, options], if the study began with them."""
    for event in history.events:
        if event.job.kind == "sensitivity" and isinstance(event.outcome, Evaluation):
            return np.array(event.outcome.attributes["table"])
    return None


def _codes(space: Space, trials: list[Trial]) -> FloatArray:
    return np.array([space.encode(trial.config) for trial in trials])


def _varied(space: Space, parents: FloatArray) -> Iterator[FloatArray]:
    """For every decision the parents [p, d] with each of its options, [p, options, d]."""
    for i, variable in enumerate(space.values()):
        options = _options(variable)
        rows = np.repeat(parents[:, None], len(options), axis=1)
        rows[:, :, i] = options
        yield rows


def _options(variable: Variable) -> FloatArray:
    if isinstance(variable, (Ordinal, Choice)):
        return np.arange(variable.lower, variable.upper + 1)
    numbers = np.linspace(variable.lower, variable.upper, NUMBERS)
    return np.unique(numbers.round()) if variable.discrete else numbers


def _spread(model: Model, rows: FloatArray) -> float:
    """The standard deviation over the options of candidates [p, options, d], averaged over p."""
    flat = rows.reshape(-1, rows.shape[2])
    values = np.concatenate([model(flat[i : i + ROWS]) for i in range(0, len(flat), ROWS)])
    return float(values.reshape(rows.shape[:2]).std(axis=1).mean())
