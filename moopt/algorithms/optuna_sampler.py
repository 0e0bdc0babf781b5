"""Optuna's samplers as algorithms. The study they see is private, in memory, rebuilt from the log; storing is ours."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from moopt.algorithms.base import Algorithm
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Problem, known_values
from moopt.space import Choice, Config, Float, Ordinal, Space

Factory = Callable[[int], BaseSampler]
"""Makes a sampler of a seed."""

SAMPLERS: Mapping[str, Factory] = {
    "gp": lambda seed: GPSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
}

HUB = "hub:"
"""What the name of a package of OptunaHub begins with."""

RETRIES = 5
"""How often a sampler is asked again for a candidate that is new, before one near its suggestion is taken."""


class OptunaSampler(Algorithm):
    """Any sampler of Optuna, made anew for each ask.

    Levels are given to it as integers, so that it knows their order. It sees every trial, pending ones as running; what
    it notes about its suggestions is stored with them, so that a study goes on without asking it again.

    Args:
        sampler: "tpe", "gp", "nsga2" or "random"; "hub:" and the name of a package of OptunaHub, such as
            "hub:samplers/auto_sampler" (needs optunahub and, the first time, a network); or what makes a sampler of a
            seed, such as `lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)`.

    Raises:
        AlgorithmError: there is no such sampler, or what would bring it is missing.
    """

    def __init__(self, sampler: str | Factory = "tpe") -> None:
        self._name = sampler if isinstance(sampler, str) else None
        if not isinstance(sampler, str) and not callable(sampler):
            raise AlgorithmError(
                f"The sampler is {sampler!r}; expected a name, such as 'tpe', or what makes one of a seed."
            )
        self._factory = _named(sampler) if isinstance(sampler, str) else sampler
        if not isinstance(made := self._make(0), BaseSampler):
            raise AlgorithmError(f"The factory made {made!r} of the seed 0; expected a sampler of Optuna.")

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        self._ledger = _Ledger(problem.space, len(problem.objectives))

    def ask(self, n: int) -> list[Job]:
        rng = self.rng()
        sampler, ledger = self._make(int(rng.integers(2**31))), self._ledger.copy(self._outside())
        jobs: list[Job] = []
        for trial in range(self.next_trial, self.next_trial + n):
            found = self._suggestion(sampler, ledger, jobs, rng)
            if found is None:
                break
            jobs.append(Job(trial, found[0], fidelity=self.problem.fidelity, note=found[1]))
            ledger.issue(jobs[-1])
        return jobs

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if job.kind == "evaluate":
                self._ledger.issue(job)

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, outcome in outcomes:
            if job.kind == "evaluate" and isinstance(outcome, Failure):
                self._ledger.fail(job)
            elif job.kind == "evaluate" and not isinstance(outcome, Failure):
                values = {**known_values(self.problem, job.config), **outcome.values}
                signed = [values[o.name] * o.sign for o in self.problem.objectives]
                self._ledger.complete(job, signed, {c.name: c.excess(values[c.name]) for c in self.problem.constraints})

    def settings(self) -> dict[str, Any]:
        """The sampler's name, or what a factory's sampler is set to: equal for factories that do the same."""
        if self._name is not None:
            return {"algorithm": "OptunaSampler", "sampler": self._name}
        made = self._make(0)
        return {"algorithm": "OptunaSampler", "sampler": type(made).__name__, "settings": _plain(vars(made))}

    def _outside(self) -> dict[int, float]:
        """By how much trials lie outside the region that is searched, as it now is; none where there is no region."""
        archive = self.archive
        if archive.region is None or not len(archive):
            return {}
        outside = archive.outside(np.array(archive.values)).tolist()
        return {job.trial: excess for job, excess in zip(archive.jobs, outside, strict=True)}

    def _make(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._factory(seed)

    def _suggestion(
        self, sampler: BaseSampler, ledger: _Ledger, asked: list[Job], rng: np.random.Generator
    ) -> tuple[Config, dict[str, Any]] | None:
        """A new candidate and the sampler's notes; None when nothing is left."""
        space = self.problem.space
        taken = {space.key(job.config) for job in asked}
        repaired = self.repairing(rng)
        for _ in range(RETRIES + 1):
            suggested, note = ledger.suggest(sampler)
            config = repaired(suggested)
            if not self.seen(config) and space.key(config) not in taken and self.within_known_bounds(config):
                return config, note
        nearby = self.unseen(_wander(space, config, rng), len(taken) + 1, rng)
        return next(((near, note) for near in nearby if space.key(near) not in taken), None)


class _Ledger:
    """The private study: every trial of ours, numbered alike."""

    def __init__(self, space: Space, objectives: int) -> None:
        self._space = space
        self._distributions = _distributions(space)
        self._storage = InMemoryStorage()
        self._id = self._storage.create_new_study([StudyDirection.MINIMIZE] * objectives, "private")

    def copy(self, outside: Mapping[int, float] = MappingProxyType({})) -> _Ledger:
        """A ledger to write on, in which trials exceed a constraint more, by number.

        Optuna replaces trials and never changes them, so both may share those there are.
        """
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        shared = {id(t): _constrained(t, outside[t.number]) if t.number in outside else t for t in trials}
        copied = copy.copy(self)
        copied._storage = copy.deepcopy(self._storage, memo=shared)
        return copied

    def suggest(self, sampler: BaseSampler) -> tuple[Config, dict[str, Any]]:
        """What the sampler would try next and its notes on it. Nothing is written here."""
        draft = self.copy()
        before = draft._storage.get_study_system_attrs(self._id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna's experimental parts, and of the GP's fit
            study = optuna.load_study(study_name="private", storage=draft._storage, sampler=sampler)
            trial = study.ask(self._distributions)
        after = draft._storage.get_study_system_attrs(self._id)
        changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
        notes = {"trial": draft._storage.get_trial(trial._trial_id).system_attrs, "study": changed}
        return _config(self._space, trial.params), json.loads(json.dumps({k: v for k, v in notes.items() if v}))

    def issue(self, job: Job) -> None:
        """A trial begins."""
        template = FrozenTrial(
            number=-1, trial_id=-1, state=TrialState.RUNNING, value=None, datetime_start=datetime.min,
            datetime_complete=None, params=_parameters(self._space, job.config), distributions=self._distributions,
            user_attrs={}, system_attrs=dict(job.note.get("trial", {})), intermediate_values={},
        )  # fmt: skip
        self._storage.create_new_trial(self._id, template)
        for key, value in job.note.get("study", {}).items():
            self._storage.set_study_system_attr(self._id, key, value)

    def complete(self, job: Job, values: Sequence[float], violations: Mapping[str, float]) -> None:
        """A trial ends with values [m] to be minimised and what constraints are exceeded by."""
        trial = self._trial(job)
        for name, violation in violations.items():
            self._storage.set_trial_system_attr(trial, f"constraints:{name}", violation)
        self._storage.set_trial_state_values(trial, TrialState.COMPLETE, values)

    def fail(self, job: Job) -> None:
        """A trial ends without values."""
        self._storage.set_trial_state_values(self._trial(job), TrialState.FAIL)

    def _trial(self, job: Job) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, job.trial)


def _constrained(trial: FrozenTrial, excess: float) -> FrozenTrial:
    """The trial as it would be with one constraint more."""
    changed = copy.copy(trial)
    changed.system_attrs = {**trial.system_attrs, "constraints:region": excess}
    return changed


def _named(sampler: str) -> Factory:
    """What makes the sampler of that name."""
    if sampler.startswith(HUB):
        return _from_hub(sampler.removeprefix(HUB))
    if sampler not in SAMPLERS:
        raise AlgorithmError(
            f"There is no sampler {sampler!r}; expected one of {', '.join(SAMPLERS)}, a package of OptunaHub such as "
            f"'{HUB}samplers/auto_sampler', or what makes one of a seed."
        )
    return SAMPLERS[sampler]


def _from_hub(package: str) -> Factory:
    """What makes the one sampler that a package of OptunaHub has."""
    try:
        import optunahub
    except ImportError:
        raise AlgorithmError(
            f"The sampler '{HUB}{package}' needs the package optunahub: pip install -e '.[hub]' in the clone."
        ) from None
    loaded = vars(optunahub.load_module(package=package)).values()
    samplers = {kind for kind in loaded if isinstance(kind, type) and issubclass(kind, BaseSampler)}
    kinds = {kind for kind in samplers if kind.__module__.startswith("optunahub_registry")}
    if len(kinds) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise AlgorithmError(f"OptunaHub's {package!r} has {names} for a sampler; expected one. Give what makes it.")
    kind: Any = kinds.pop()
    return lambda seed: kind(seed=seed)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for name, variable in space.items():
        if isinstance(variable, Choice):
            found[name] = CategoricalDistribution(variable.values)
        elif isinstance(variable, Float):
            found[name] = FloatDistribution(variable.lower, variable.upper)
        else:
            found[name] = IntDistribution(int(variable.lower), int(variable.upper))
    return found


def _parameters(space: Space, config: Config) -> dict[str, Any]:
    """The configuration as Optuna sees it: the index of a level, everything else as it is."""
    return {n: int(v.encode(config[n])) if isinstance(v, Ordinal) else config[n] for n, v in space.items()}


def _config(space: Space, parameters: Mapping[str, Any]) -> Config:
    return {n: v.values[parameters[n]] if isinstance(v, Ordinal) else parameters[n] for n, v in space.items()}


def _wander(space: Space, config: Config, rng: np.random.Generator) -> Iterator[Config]:
    """Candidates without end, step by step away from one."""
    while True:
        name = space.names[int(rng.integers(len(space)))]
        if steps := space[name].neighbours(config[name]):
            config = {**config, name: steps[int(rng.integers(len(steps)))]}
        yield config


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that JSON can hold."""
    kinds = (bool, int, float, str, type(None))
    return {key.lstrip("_"): value for key, value in sorted(settings.items()) if isinstance(value, kinds)}
