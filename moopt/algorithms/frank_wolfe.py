"""Frank-Wolfe merging: from mixture to mixture towards the models that the loss's slope points to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from moopt.algorithms.base import Algorithm, positive, share
from moopt.errors import AlgorithmError
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Fidelity, Problem
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]

VAIN = 3
"""Searches in a row without a new trial, after which nothing more is asked for."""
DRAWS, HALVINGS = 50, 10
"""How often a mixture to begin from is drawn, and a step is halved, until what is known is within its bounds."""
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8
"""Of Adam."""


class FrankWolfeMerge(Algorithm):
    """Minimises one loss over all mixtures of a pool of models, each group of the network mixed by itself.

    The problem's decisions are weights on simplexes, one for each group, and its gradient says how the loss changes
    towards each model there. Hard: a step goes from the present mixture towards the model of least slope in every
    group, by `step` * 2 / (t + 2). Soft: for every objective the model that is best at it by itself is chosen, or all
    models, where one is best at everything; and the weights of these, group by group, are fitted by Adam.

    What is left of the slope, the gap <gradient, theta - s>, is never negative, and bounds how far a convex loss is
    from its least. `gaps` has it for every mixture that was linearised, by trial; below `tolerance` a search ends. When
    one has ended, the next begins from a random mixture. Steps stop short of bounds on what is known; other preferences
    do not steer it.

    After Chen et al. 2025 (arXiv:2503.12649). A merge to begin from, such as one by TIES, is a model of the pool.

    Args:
        kind: "hard" or "soft".
        rounds: Steps of a hard search; every one of them is a trial.
        step: What the steps' lengths are multiplied by.
        begin: The model that a hard search begins from; None: the mean of all.
        tolerance: The gap at which it ends.
        updates: Adam's updates of a soft search.
        rate: Adam's rate.
        every: After how many updates the mixture is a trial.
        examples: Examples of each gradient; None: as many as the problem says.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def __init__(
        self, kind: Literal["hard", "soft"] = "soft", rounds: int = 10, step: float = 1.0, begin: str | None = None,
        tolerance: float = 0.0, updates: int = 100, rate: float = 0.1, every: int = 20, examples: int | None = None,
    ) -> None:  # fmt: skip
        if kind not in ("hard", "soft"):
            raise AlgorithmError(f"kind is {kind!r}; expected 'hard' or 'soft'.")
        if begin is not None and (kind == "soft" or not isinstance(begin, str)):
            raise AlgorithmError(f"begin is {begin!r}; expected the name of a model, for a hard search, or None.")
        self.kind, self.begin = kind, begin
        self.rounds, self.updates = positive("rounds", rounds), positive("updates", updates)
        self.every, self.step, self.rate = positive("every", every), share("step", step), share("rate", rate)
        self.tolerance = share("tolerance", tolerance)
        self.examples = None if examples is None else positive("examples", examples)

    def start(self, problem: Problem, seed: int) -> None:
        super().start(problem, seed)
        simplexes = problem.space.simplexes
        models = next(iter(simplexes.values())).parts if simplexes else ()
        variables = sum(len(simplex.parts) - 1 for simplex in simplexes.values())
        if not models or variables < len(problem.space) or any(s.parts != models for s in simplexes.values()):
            raise AlgorithmError(
                "FrankWolfeMerge searches weights on simplexes of the same models and nothing else, such as "
                f"ModelMerge(method='linear', weights='simplex'); got {problem.space!r}."
            )
        if self.begin is not None and self.begin not in models:
            raise AlgorithmError(f"begin is {self.begin!r}; expected one of the models {', '.join(models)}.")
        self._models, self._groups = models, tuple(simplexes)
        self.gaps: dict[int, float] = {}
        self._trials: dict[tuple[object, ...], int] = {}
        self._told: set[int] = set()
        self._searches = self._linearised = self._vain = 0
        self._began = 0
        self._mixture: FloatArray | None = None
        self._chosen: npt.NDArray[np.int64] = np.arange(len(models))
        self._forget()

    def ask(self, n: int) -> list[Job]:
        if self._vain >= VAIN:
            return []
        if alone := [config for config in self._alone() if not self.seen(config)]:
            return self.jobs(alone[:n])
        if any(trial not in self._told for trial in map(self._trial, self._alone())) or self._waits:
            return []
        mixture = self._begun()
        config = self._config(mixture)
        if self._is_trial() and not self.seen(config):
            return self.jobs([config])
        if (trial := self._trial(config)) >= 0 and trial not in self._told:
            return []
        note = {"search": self._searches, "step": self._t}
        tokens = self.examples or self.problem.gradient_tokens or self.problem.fidelity.tokens
        return [Job(trial, config, "gradient", Fidelity(tokens, self._linearised), note=note)]

    def issued(self, jobs: Sequence[Job]) -> None:
        super().issued(jobs)
        for job in jobs:
            if job.kind == "evaluate":
                self._trials[self.problem.space.key(job.config)] = job.trial
            elif job.kind == "gradient":
                if self._mixture is None:
                    self._mixture = self._begun()
                    self._logits = np.log(np.maximum(self._mixture, TINY))
                self._waits = True
                self._linearised += 1

    def tell(self, outcomes: Sequence[tuple[Job, Outcome]]) -> None:
        super().tell(outcomes)
        for job, outcome in outcomes:
            if job.kind == "evaluate":
                self._told.add(job.trial)
            elif job.kind == "gradient":
                self._waits = False
                self._stepped(job, outcome)

    def extra_jobs(self, problem: Problem, trials: int) -> dict[str, tuple[int, int]]:
        each = 1 if self.kind == "hard" else self.every
        tokens = self.examples or problem.gradient_tokens or problem.fidelity.tokens
        return {"gradient": (max(0, trials - len(problem.baselines())) * each, tokens)}

    def _forget(self) -> None:
        """Where a search begins."""
        self._mixture, self._t, self._waits = None, 0, False
        shape = len(self._groups), len(self._models)
        self._momentum, self._squares, self._logits = (np.zeros(shape) for _ in range(3))

    def _alone(self) -> list[Config]:
        """What has to be evaluated first: every model by itself, for the soft kind, which chooses among them."""
        if self.kind == "hard":
            return []
        found = [self._config(np.tile(one, (len(self._groups), 1))) for one in np.eye(len(self._models))]
        return [config for config in found if self.within_known_bounds(config)]

    def _begun(self) -> FloatArray:
        """The present mixture [groups, models], or the one that the next search begins from."""
        if self._mixture is not None:
            return self._mixture
        shape = len(self._groups), len(self._models)
        if self.kind == "soft":
            self._chosen = self._best_alone()
        found = np.zeros(shape)
        if self.begin is not None and self.kind == "hard" and not self._searches:
            found = np.tile(np.eye(shape[1])[self._models.index(self.begin)], (shape[0], 1))
        elif not self._searches:
            found[:, self._chosen] = 1.0 / len(self._chosen)
        for draw in range(DRAWS):
            if found.any() and self.within_known_bounds(self._config(found)):
                break
            rng = np.random.default_rng([self.seed, self._searches, draw])
            found[:] = 0.0
            found[:, self._chosen] = rng.dirichlet(np.ones(len(self._chosen)), size=shape[0])
        return found

    def _best_alone(self) -> npt.NDArray[np.int64]:
        """The models [k] of which each is the best at some objective; all, where none could be evaluated."""
        places = {job.trial: place for place, job in enumerate(self.archive.jobs)}
        told = [places.get(self._trial(config)) for config in self._alone()]
        known = [model for model, place in enumerate(told) if place is not None]
        if not known:
            return np.arange(len(self._models))
        values = np.array([self.archive.values[told[model] or 0] for model in known])
        measured = [j for j, objective in enumerate(self.problem.objectives) if not objective.known]
        best = np.unique(np.array(known)[values[:, measured].argmin(axis=0)])
        return best if len(best) > 1 else np.arange(len(self._models))

    def _is_trial(self) -> bool:
        """Whether the present mixture is to be evaluated."""
        return self.kind == "hard" or self._t % self.every == 0

    def _stepped(self, job: Job, outcome: Outcome) -> None:
        """Take the step that a gradient asks for, or end the search."""
        if isinstance(outcome, Failure):
            self._end()
            return
        assert isinstance(outcome, Evaluation)
        assert self._mixture is not None
        slopes = np.array(outcome.attributes["linear"], dtype=float)
        gap = max(0.0, float(-slopes.min(axis=1).sum()))
        if job.trial >= 0:
            self.gaps[job.trial] = gap
        last = self._t >= (self.rounds if self.kind == "hard" else self.updates)
        if gap <= self.tolerance or last:
            self._end()
            return
        wanted, before = self._towards(slopes) if self.kind == "hard" else self._updated(slopes), self._mixture
        self._t += 1
        for _ in range(HALVINGS):
            if self.within_known_bounds(self._config(wanted)):
                self._mixture = wanted
                return
            wanted = (wanted + before) / 2
        self._end()

    def _end(self) -> None:
        self._searches += 1
        self._vain = self._vain + 1 if self.next_trial == self._began else 0
        self._began = self.next_trial
        self._forget()

    def _towards(self, slopes: FloatArray) -> FloatArray:
        """The mixture after a step towards the model of least slope in every group."""
        assert self._mixture is not None
        corner = np.eye(len(self._models))[slopes.argmin(axis=1)]
        length = min(self.step * 2 / (self._t + 2), 1.0)
        found: FloatArray = self._mixture + length * (corner - self._mixture)
        return found

    def _updated(self, slopes: FloatArray) -> FloatArray:
        """The mixture after one of Adam's updates of the logits of what was chosen."""
        assert self._mixture is not None
        inner = (self._mixture * slopes).sum(axis=1, keepdims=True)
        gradient = self._mixture * (slopes - inner)
        t = self._t + 1
        self._momentum = BETA1 * self._momentum + (1 - BETA1) * gradient
        self._squares = BETA2 * self._squares + (1 - BETA2) * gradient**2
        self._logits -= self.rate * self._momentum / (1 - BETA1**t) / (np.sqrt(self._squares / (1 - BETA2**t)) + TINY)
        odds = np.exp(self._logits - self._logits[:, self._chosen].max(axis=1, keepdims=True))
        chosen = np.zeros_like(odds)
        chosen[:, self._chosen] = odds[:, self._chosen]
        found: FloatArray = chosen / chosen.sum(axis=1, keepdims=True)
        return found

    def _config(self, mixture: FloatArray) -> Config:
        """The configuration of a mixture [groups, models]."""
        simplexes, config = self.problem.space.simplexes, Config()
        for row, group in zip(mixture, self._groups, strict=True):
            config |= simplexes[group].config(group, dict(zip(self._models, row.tolist(), strict=True)))
        return self.problem.space.validate(config)

    def _trial(self, config: Config) -> int:
        """The trial of a configuration; -1 if it is none."""
        return self._trials.get(self.problem.space.key(config), -1)
