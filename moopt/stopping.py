"""When a search ends: by trials, time, forward tokens, a hypervolume that is reached, or when nothing improves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moopt import pareto
from moopt.errors import NoFeasibleTrial, StudyError
from moopt.history import History, Trial

DRAWS = 64
"""Draws of the front's values that the noise of a hypervolume is estimated from."""
LEAST_GAIN = 1e-4
"""The relative growth of the hypervolume that counts as an improvement where values have no noise."""
FREE = 10
"""Finished trials that counted no forward token, after which a limit of tokens alone is refused."""


@dataclass(frozen=True)
class Stop:
    """Limits of a search; the first that is reached ends it. None sets no limit.

    Attributes:
        trials: Trials in total.
        seconds: Seconds of this run.
        tokens: Forward tokens in total.
        hypervolume: What the front is to dominate, up to the study's reference point.
        patience: Trials in a row that may fail to raise the hypervolume by more than the noise of the front's values.

    Raises:
        StudyError: a limit is not a number above 0, or there is none at all.
    """

    trials: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    hypervolume: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        limits = vars(self)
        for name, limit in limits.items():
            whole = name in ("trials", "tokens", "patience")
            kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, kinds) or not limit > 0 or not math.isfinite(limit):
                raise StudyError(f"{name} is {limit!r}; expected a {'whole ' if whole else ''}number above 0.")
        if all(limit is None for limit in limits.values()):
            raise StudyError(f"Nothing says when to stop; give one of {', '.join(limits)}.")


class Stopwatch:
    """Holds a search's limits against its history.

    Args:
        stop: The limits.
        history: What is found so far; read anew each time.
        clock: Seconds.
    """

    def __init__(self, stop: Stop, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._history, self._clock = stop, history, clock
        self._began = clock()
        self._finished, self._improved = -1, 0
        self._before: list[Trial] = []
        self._volume = (-1, 0.0)
        self._heard, self._spent = 0, 0

    def room(self) -> int | None:
        """How many trials may still begin; None for any number."""
        return None if self._stop.trials is None else max(0, self._stop.trials - self._history.begun)

    def reached(self) -> str | None:
        """Which limit is reached, in words; None if none is.

        Raises:
            StudyError: only tokens are limited, and nothing counts them.
        """
        stop = self._stop
        if stop.seconds is not None and self._clock() - self._began >= stop.seconds:
            return f"{stop.seconds:g} seconds have passed"
        if stop.tokens is not None and (spent := self._tokens()) >= stop.tokens:
            return f"{spent} forward tokens are spent, of {stop.tokens}"
        if stop.hypervolume is not None and (found := self._dominated()) >= stop.hypervolume:
            return f"the hypervolume is {found:.6g}, {stop.hypervolume:g} was wanted"
        if stop.patience is not None and self._idle() >= stop.patience:
            return f"the last {stop.patience} trials have not raised the hypervolume beyond the noise"
        return None

    def _tokens(self) -> int:
        """The forward tokens of all events; those that were counted before are not counted again."""
        events = self._history.events
        self._spent += sum(event.tokens for event in events[self._heard :])
        self._heard = len(events)
        if self._spent == 0 and self._stop == Stop(tokens=self._stop.tokens) and self._ended() >= FREE:
            raise StudyError(
                f"tokens={self._stop.tokens} would never end this run: {self._ended()} trials have finished without a "
                "forward token, so the problem counts none; limit trials or seconds."
            )
        return self._spent

    def _ended(self) -> int:
        """How many trials are finished; what was pruned was never begun."""
        return sum(trial.state in ("complete", "failed") for trial in self._history.trials)

    def _dominated(self) -> float:
        """The hypervolume of what is finished; 0 while nothing is feasible."""
        if self._volume[0] != (finished := self._ended()):
            self._volume = finished, _hypervolume(self._history)
        return self._volume[1]

    def _idle(self) -> int:
        """The trials finished since the last that raised the hypervolume beyond its noise, or since the run began.

        An inferred reference point may move, so what was there before is measured up to the present one.
        """
        history = self._history
        finished = self._ended()
        if finished != self._finished:
            found, before = self._dominated(), 0.0
            if self._before:
                before = pareto.hypervolume(history.values(self._before), history.reference())
            if self._finished < 0 or found > before + max(LEAST_GAIN * before, _noise(history)):
                self._before, self._improved = history.nondominated(), finished
            self._finished = finished
        return self._finished - self._improved


def _hypervolume(history: History) -> float:
    try:
        return history.hypervolume()
    except NoFeasibleTrial:
        return 0.0


def _noise(history: History) -> float:
    """The standard deviation of the front's hypervolume under the measured variances of its values."""
    front = history.nondominated()
    variances = np.array([[trial.variance(o.name) for o in history.objectives] for trial in front])
    deviations = np.sqrt(np.nan_to_num(variances))
    if not deviations.any():
        return 0.0
    rng, reference, values = np.random.default_rng(0), history.reference(), history.values(front)
    draws = values + deviations * rng.standard_normal((DRAWS, *values.shape))
    return float(np.std([pareto.hypervolume(draw, reference) for draw in draws]))
