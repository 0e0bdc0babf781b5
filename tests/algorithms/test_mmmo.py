"""MM-MO: the contract, and what each of its ideas does when it is switched on."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from moopt.algorithms import MMMO
from moopt.errors import AlgorithmError
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated, replays
from tests.algorithms.test_map import Smooth


class TestMMMO(AlgorithmSuite):
    trials = 12

    def algorithm(self) -> MMMO:
        return MMMO(opening=8, batch=3, evaluated=4)


def test_replay_at_any_point_asks_the_same():
    replays(partial(MMMO, 8, 3, 2), Smooth(3, 2), trials=14, workers=2, every=7)


def test_each_idea_changes_what_is_evaluated():
    found = []
    for switches in ((True, True), (True, False), (False, True), (False, False)):
        log = drive(MMMO(8, 6, 3, *switches), Smooth(2, 2), 11)
        found.append([tuple(job.config.values()) for job in evaluated(log)[8:]])
    assert len({str(each) for each in found}) == 4


def test_the_least_known_are_evaluated():
    algorithm = MMMO(10, 8, 4, weak_to_strong=False)
    drive(algorithm, Smooth(2, 2), 10)
    chosen = algorithm.plan(algorithm.rng())
    asked = [job.config for job in algorithm._inner.ask(8)]
    beliefs = algorithm._inner.beliefs()
    assert beliefs is not None

    def information(configs: list[dict[str, float]]) -> np.ndarray:
        codes = np.array([algorithm.problem.space.encode(config) for config in configs])
        return sum(1 / np.diag(s.posterior(codes)[1]) for s in beliefs.surrogates.values())  # type: ignore[return-value]

    left = [config for config in asked if config not in chosen]
    assert information(chosen).max() <= information(left).min()


def test_bad_settings_are_refused():
    with pytest.raises(AlgorithmError, match="screening is 3"):
        MMMO(screening=3)  # type: ignore[arg-type]
    with pytest.raises(AlgorithmError, match="opening is 2; evolution needs 3"):
        MMMO(opening=2)
    with pytest.raises(AlgorithmError, match="evaluated is 0"):
        MMMO(evaluated=0)
