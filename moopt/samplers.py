"""moopt's algorithms as samplers of a plain Optuna study. The other way round: `moopt.algorithms.OptunaSampler`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from threading import Lock
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moopt import algorithms
from moopt.algorithms import Algorithm
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Constraint, Evaluation, Fidelity, Objective, Problem
from moopt.space import Choice, Config, Float, Integer, Ordinal, Space, Variable

NOTE = "moopt:note"
"""The system attribute of a trial that holds what the algorithm notes about it."""

ORDINAL = 64
"""Whole numbers on a logarithmic scale up to which each is a level; of more several share a logarithm, about."""

ALTERNATIVES = 8
"""Candidates that are asked for when the first is, rounded, one that the study has."""


def optuna_sampler(algorithm: str | Algorithm, seed: int = 0) -> BaseSampler:
    """A sampler that runs an algorithm of moopt in a study of Optuna.

    ```python
    study = optuna.create_study(sampler=moopt.optuna_sampler("nsga2"), directions=["minimize", "minimize"])
    ```

    What the algorithm knows is rebuilt from the study's trials, so that a stored study goes on. The space is that of
    the first finished trial; until then, and for parameters that it lacks, Optuna draws at random. Floats on a
    logarithmic scale are searched on it; constraints are those of `trial.set_constraint`.

    Args:
        algorithm: A name from `moopt.algorithms.NAMES`, or an algorithm.
        seed: The same seed and the same trials give the same suggestions.

    Raises:
        AlgorithmError: there is no such algorithm, or it needs a problem that offers more than Optuna can tell.
    """
    if algorithm == "auto":
        raise AlgorithmError(
            "'auto' looks at a problem, which a study of Optuna tells only later; name an algorithm, such as 'qnehvi'."
        )
    made = algorithms.create(algorithm) if isinstance(algorithm, str) else algorithm
    if not isinstance(made, Algorithm):
        raise AlgorithmError(f"The algorithm is {algorithm!r}; expected a name or an algorithm, such as NSGA2().")
    if made.requires:
        raise AlgorithmError(
            f"{type(made).__name__} needs a problem with {', '.join(sorted(made.requires))}, which a study of Optuna "
            "does not have; run it in a moopt.Study."
        )
    return AlgorithmSampler(made, seed)


class AlgorithmSampler(BaseSampler):
    """The sampler that `optuna_sampler` makes."""

    def __init__(self, algorithm: Algorithm, seed: int) -> None:
        self._algorithm, self._seed = algorithm, seed
        self._random = RandomSampler(seed=seed)
        self._lock = Lock()
        self._mirror: _Mirror | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy elsewhere needs; the rest it rebuilds from the study."""
        return {"_algorithm": self._algorithm, "_seed": self._seed, "_random": self._random, "_mirror": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED))
        first = next((t.distributions for t in trials if t.distributions), {})
        return {name: distribution for name, distribution in first.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        with self._lock:
            trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            bounded = next((tuple(t.constraints) for t in trials if t.constraints), ())
            if self._mirror is None or self._mirror.differs(search_space, study.directions, bounded):
                algorithm = copy.deepcopy(self._algorithm)
                self._mirror = _Mirror(algorithm, search_space, study.directions, bounded, self._seed)
            self._mirror.follow(trials)
            found, note = self._mirror.suggestion(trial.number)
        if note:
            study._storage.set_trial_system_attr(trial._trial_id, NOTE, dict(note))
        return found

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._random.reseed_rng()


class _Mirror:
    """An algorithm that is told of a study's trials in the order in which they began and ended."""

    def __init__(
        self,
        algorithm: Algorithm,
        distributions: Mapping[str, BaseDistribution],
        directions: Sequence[StudyDirection],
        constraints: Sequence[str],
        seed: int,
    ) -> None:
        self._what = (dict(distributions), list(directions), tuple(constraints))
        self._scales = {name: _scale(distribution) for name, distribution in distributions.items()}
        self._problem = _Told(self._scales, directions, constraints)
        self._algorithm = algorithm
        self._issued: set[int] = set()
        self._told: set[int] = set()
        self._tried: set[tuple[Any, ...]] = set()
        algorithm.start(self._problem, seed)

    def differs(
        self,
        distributions: Mapping[str, BaseDistribution],
        directions: Sequence[StudyDirection],
        constraints: Sequence[str],
    ) -> bool:
        """Whether it is of another problem."""
        return self._what != (dict(distributions), list(directions), tuple(constraints))

    def follow(self, trials: Sequence[FrozenTrial]) -> None:
        """Tell the algorithm what is new."""
        for _, number, trial, ends in sorted(self._news(trials), key=lambda event: event[:2]):
            config = {name: scale.code(trial.params[name]) for name, scale in self._scales.items()}
            job = Job(number, config, note=trial.system_attrs.get(NOTE, {}))
            self._tried.add(self._key(trial.params))
            if ends:
                self._told.add(number)
                self._algorithm.tell([(job, self._outcome(trial))])
            else:
                self._issued.add(number)
                self._algorithm.issued([job])

    def suggestion(self, number: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Parameters for the trial of that number, none if the algorithm has nothing new; and its notes on them."""
        self._algorithm.next_trial = max(self._algorithm.next_trial, number)
        found: dict[str, Any] = {}
        note: Mapping[str, Any] = {}
        for job in chain.from_iterable(map(self._algorithm.ask, (1, ALTERNATIVES))):
            found = {name: scale.value(job.config[name]) for name, scale in self._scales.items()}
            note = job.note
            if self._key(found) not in self._tried:
                break
        return found, note

    def _key(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(parameters[name] for name in self._scales)

    def _news(self, trials: Sequence[FrozenTrial]) -> Iterator[tuple[datetime, int, FrozenTrial, bool]]:
        """When what became of trials that have all parameters and are not known yet: when, which, and if it ended."""
        for trial in trials:
            if not all(name in trial.params and scale.has(trial.params[name]) for name, scale in self._scales.items()):
                continue
            if trial.number not in self._issued:
                yield trial.datetime_start or datetime.min, trial.number, trial, False
            if trial.state.is_finished() and trial.number not in self._told:
                yield trial.datetime_complete or datetime.max, trial.number, trial, True

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        if trial.state != TrialState.COMPLETE:
            return Failure(trial.state.name.lower(), f"Optuna's trial {trial.number} ended without values.")
        values = {o.name: value for o, value in zip(self._problem.objectives, trial.values, strict=True)}
        return Evaluation(values | {c.name: trial.constraints.get(c.name, 0.0) for c in self._problem.constraints})


class _Told(Problem):
    """The problem that a study of Optuna poses; Optuna evaluates it."""

    def __init__(
        self, scales: Mapping[str, _Scale], directions: Sequence[StudyDirection], constraints: Sequence[str]
    ) -> None:
        self.space = Space({name: scale.variable for name, scale in scales.items()})
        self.objectives = [
            Objective(f"objective {i}", "max" if direction == StudyDirection.MAXIMIZE else "min")
            for i, direction in enumerate(directions)
        ]
        self.constraints = [Constraint(name, 0.0) for name in constraints]

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        raise AlgorithmError("A study of Optuna evaluates its trials itself; this problem has no evaluation.")


@dataclass(frozen=True)
class _Scale:
    """A parameter of Optuna as a variable of ours.

    Attributes:
        variable: What the algorithm sees.
        code: Optuna's value -> the variable's.
        value: The variable's value -> Optuna's.
        has: Whether a value of Optuna's is among those.
    """

    variable: Variable
    code: Callable[[Any], Any]
    value: Callable[[Any], Any]
    has: Callable[[Any], bool]


def _scale(distribution: BaseDistribution) -> _Scale:
    """Choices by index, steps counted from the lowest, logarithms where Optuna wants them, unless numbers are few."""

    def has(value: Any) -> bool:
        try:
            return bool(distribution._contains(distribution.to_internal_repr(value)))
        except ValueError:
            return False

    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        indices = Choice(*range(len(choices)))
        return _Scale(indices, lambda v: int(distribution.to_internal_repr(v)), lambda c: choices[c], has)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    kind = int if isinstance(distribution, IntDistribution) else float
    if distribution.log and kind is int and high - low < ORDINAL:
        return _Scale(Ordinal(*range(int(low), int(high) + 1)), int, int, has)
    if distribution.log:
        margin = 0.5 if kind is int else 0.0
        logarithm = Float(math.log(low - margin), math.log(high + margin))
        return _Scale(logarithm, math.log, lambda c: min(max(_rounded(math.exp(c), kind), low), high), has)
    if step is not None:
        steps = Integer(0, round((high - low) / step))
        return _Scale(steps, lambda v: round((v - low) / step), lambda c: min(low + c * step, high), has)
    return _Scale(Float(low, high), float, float, has)


def _rounded(value: float, kind: type) -> float:
    return round(value) if kind is int else value
