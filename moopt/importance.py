"""Which decisions matter for which objective: how much each moves it around the front. Fits models, runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from moopt import pareto
from moopt.errors import NoFeasibleTrial, StudyError
from moopt.history import History, Trial
from moopt.one_thread import one_thread
from moopt.problem import Evaluation, Objective, Problem
from moopt.space import Choice, Ordinal, Space, Variable, from_description
from moopt.surrogates import Data, features, fit

if TYPE_CHECKING:
    from moopt.acquisition import Known

FloatArray = npt.NDArray[np.float64]
Model = Callable[[FloatArray], FloatArray]

LEAST_TRIALS = 8
"""Completed trials from which a model of them says something."""
MOST_TRIALS = 200
"""Completed trials that a model is fitted to, of more those nearest to the front: a fit takes seconds."""
MOST_CANDIDATES = 32
"""Candidates of the front that decisions are varied around; of a larger front so many, evenly."""
NUMBERS = 10
"""Values that are tried of a number."""
ROWS = 512
"""Candidates that a model is asked for at a time: its covariances grow with their square."""


@one_thread()
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
    from moopt.acquisition import Known

    known = Known(problem)
    exact: dict[str, Model] = {name: partial(_exact, known, name) for name in known.names}
    measured = _measured(history, problem.space, [o for o in problem.objectives if o.name not in exact], problem)
    return _spreads(history, problem.space, {o.name: {**exact, **measured}[o.name] for o in problem.objectives})


@one_thread()
def stored_importance(
    history: History,
    objectives: Sequence[Objective] | None = None,
    trials: int = MOST_TRIALS,
    candidates: int = MOST_CANDIDATES,
) -> pd.DataFrame:
    """The same of the measured objectives, from what is stored alone: what is known only the problem can tell.

    Args:
        history: What the study has found.
        objectives: Those of the measured ones that are asked for; None: all.
        trials: How many of the completed trials, the nearest to the front, a model is fitted to at most.
        candidates: How many of the front's candidates decisions are varied around at most.

    Raises:
        StudyError: too few trials are complete, every objective is known, or the space was not stored.
        NoFeasibleTrial: there is no front.
        SurrogateError: an objective cannot be modelled.
    """
    if not (measured := [o for o in objectives or history.objectives if not o.known]):
        raise StudyError(f"{history.name!r} measures no objective: all are known. `Study.importance` tells of those.")
    if not (described := history.meta.get("identity", {}).get("space")):
        raise StudyError(f"{history.name!r} was stored without its space, so that its decisions cannot be told apart.")
    space = from_description(described)
    return _spreads(history, space, _measured(history, space, measured, most=trials), candidates)


def _spreads(history: History, space: Space, models: Mapping[str, Model], most: int = MOST_CANDIDATES) -> pd.DataFrame:
    """What each decision moves by each model, around the front."""
    if not (front := history.front()):
        raise NoFeasibleTrial(f"The study {history.name!r} has no complete and feasible trial yet.")
    chosen = np.linspace(0, len(front) - 1, min(len(front), most)).round().astype(int)
    parents = _codes(space, [front[i] for i in chosen])
    found = [[_spread(model, rows) for model in models.values()] for rows in _varied(space, parents)]
    return pd.DataFrame(found, pd.Index(space.names, name="decision"), list(models))


def _measured(
    history: History, space: Space, objectives: Sequence[Objective], problem: Problem | None = None,
    most: int = MOST_TRIALS,
) -> dict[str, Model]:  # fmt: skip
    """What surrogates expect of objectives [n] for candidates [n, d], signs turned; the first has the study's prior."""
    trials = _informative(history, most)
    codes = _codes(space, trials)
    found: dict[str, Model] = {}
    for objective in objectives:
        values = np.array([trial.values[objective.name] for trial in trials]) * objective.sign
        data = Data.of(codes, values, np.array([trial.variance(objective.name) for trial in trials]))
        prior = None if found else _prior(history)
        found[objective.name] = fit(data, space, prior, None if problem is None else features(problem)).mean
    return found


def _informative(history: History, most: int) -> list[Trial]:
    """The completed trials, of many those nearest to the front."""
    completed = [trial for trial in history.trials if trial.state == "complete"]
    if len(completed) < LEAST_TRIALS:
        raise StudyError(
            f"{history.name!r} has {len(completed)} completed trials; expected {LEAST_TRIALS} or more, from which the "
            "importance of decisions can be told. Run it for longer."
        )
    nearest = np.argsort(pareto.ranks(history.values(completed)), kind="stable")[:most]
    return [completed[i] for i in sorted(nearest)]


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
    """The standard deviation over the options of candidates [p, options, d] that have values, averaged over p."""
    flat = rows.reshape(-1, rows.shape[2])
    values = np.concatenate([model(flat[i : i + ROWS]) for i in range(0, len(flat), ROWS)]).reshape(rows.shape[:2])
    there = values[~np.isnan(values).all(axis=1)]
    return float(np.nanstd(there, axis=1).mean()) if len(there) else 0.0
