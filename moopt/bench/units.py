"""A unit: one search of a benchmark, with every value it evaluated, so that any score can be made from it later."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt import pareto
from moopt.errors import StorageError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Unit:
    """One finished search.

    Attributes:
        race: The race it belongs to.
        algorithm: What searched.
        seed: The search's seed.
        identity: What the race was about; a unit of another identity is not taken for one of the race.
        values: The objectives that were measured, signs turned to be minimised, [n, m].
        truth: The same without noise, where the problem knows it, else equal to `values`, [n, m].
        violations: The sum of what the constraints are exceeded by, [n].
        spent: How many evaluations had been spent when each was told, its own included, [n]. Tables and gradients
            count as many evaluations as they cost in forward tokens.
        seconds: Processor seconds of suggesting and learning, all in all: what else runs on the machine does not count,
            and on one thread they are what a search alone on it takes.
        evaluating: Processor seconds of evaluating.
        idle: How often a place for a pending candidate stayed empty although others were pending.
        took: What "auto" took; else the algorithm.
        believed: What the search in the end believed the trials to be without noise, [n, m]; None: what was measured.
        day: When it was searched, such as "2026-11-28".
    """

    race: str
    algorithm: str
    seed: int
    identity: dict[str, Any]
    values: list[list[float]]
    truth: list[list[float]]
    violations: list[float]
    spent: list[int]
    seconds: float
    evaluating: float
    idle: int = 0
    took: str = ""
    believed: list[list[float]] | None = None
    day: str = ""

    def front(self, evaluations: int) -> FloatArray:
        """The true values of the front that a search would return after so many evaluations, [k, m].

        What is on it is decided by what was measured, in the end by what the search believes instead, if it does.
        """
        ended = not self.spent or evaluations >= self.spent[-1]
        judged = self.values if self.believed is None or not ended else self.believed
        kept = np.flatnonzero((np.array(self.spent) <= evaluations) & (np.array(self.violations) <= 0))
        values, truth = (np.array(each).reshape(len(self.spent), -1)[kept] for each in (judged, self.truth))
        return truth[pareto.nondominated(values)]


def path(folder: Path, race: str, algorithm: str, seed: int) -> Path:
    """Where a unit is stored."""
    return folder / "units" / _plain(race) / _plain(algorithm) / f"{seed}.json"


def save(folder: Path, unit: Unit) -> None:
    """Store a unit: under a temporary name first, so that a unit is there whole or not at all."""
    target = path(folder, unit.race, unit.algorithm, unit.seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(unit)))
    temporary.replace(target)


def load(folder: Path, race: str, algorithm: str, seed: int) -> Unit | None:
    """The stored unit; None if there is none yet.

    Raises:
        StorageError: the file is there and is no unit.
    """
    stored = path(folder, race, algorithm, seed)
    try:
        return Unit(**json.loads(stored.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{stored} is no unit of a benchmark ({error}); delete it to run that search again."
        ) from None


def _plain(name: str) -> str:
    """A name as a folder's."""
    return "".join(c if c.isalnum() or c in "-_.=,@" else "_" for c in name)
