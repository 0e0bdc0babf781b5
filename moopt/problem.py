"""What a problem is: decisions, objectives, constraints and how to evaluate them. Numpy only, no models here."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from moopt.errors import ProblemError, SpaceError
from moopt.space import Config, Space

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


LEAST = 1e-12
"""What a value on a logarithmic scale counts as at least, where an objective says nothing else."""


TAKEN = frozenset({"trial", "baseline", "role", "state", "seconds", "tokens", "best"})
"""Columns that tables of trials have beside objectives and constraints."""


@dataclass(frozen=True)
class Objective:
    """One number to minimise or maximise.

    Attributes:
        name: How it is called everywhere, up to the plots.
        direction: "min" or "max".
        unit: What it is measured in, as it is written on an axis; "" for a bare number.
        known: Exact and free from the configuration alone: given by `Problem.known`, never measured.
        reference: The worst value of interest, for the hypervolume; None infers it.
        scale: "log" where factors count and not differences, as of a positive loss that spans orders of magnitude:
            decides where on the front algorithms look for improvement, never which of two trials is better.
        least: On a logarithmic scale, what values count as at least: below it, no improvement is looked for.
    """

    name: str
    direction: Literal["min", "max"] = "min"
    unit: str = ""
    known: bool = False
    reference: float | None = None
    scale: Literal["linear", "log"] = "linear"
    least: float = LEAST

    def __post_init__(self) -> None:
        _named(self.name, "objective")
        if self.scale not in ("linear", "log"):
            raise ProblemError(f"Objective {self.name!r} has scale {self.scale!r}; expected 'linear' or 'log'.")
        if not (is_finite(self.least) and self.least > 0):
            raise ProblemError(f"Objective {self.name!r} has least={self.least!r}; expected a number above 0.")
        if self.direction not in ("min", "max"):
            raise ProblemError(f"Objective {self.name!r} has direction {self.direction!r}; expected 'min' or 'max'.")
        if self.reference is not None and not is_finite(self.reference):
            raise ProblemError(f"Objective {self.name!r} has the reference {self.reference!r}; expected a number.")

    @property
    def sign(self) -> float:
        """1 to minimise, -1 to maximise: value * sign is minimised."""
        return 1.0 if self.direction == "min" else -1.0

    @property
    def label(self) -> str:
        """The name with its unit, for an axis or a column."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True)
class Constraint:
    """A number that must stay at or below `bound`; a trial above it is never shown as best."""

    name: str
    bound: float
    unit: str = ""

    def __post_init__(self) -> None:
        _named(self.name, "constraint")
        if not is_finite(self.bound):
            raise ProblemError(f"Constraint {self.name!r} has the bound {self.bound!r}; expected a finite number.")

    def excess(self, value: Any) -> Any:
        """By how much a value, or an array of any shape, exceeds the bound; negative where it stays below."""
        return value - self.bound


@dataclass(frozen=True)
class Fidelity:
    """How much an evaluation costs and on what: equal fidelities use the same data.

    Attributes:
        tokens: How many tokens (or examples) are run; 0 where that has no meaning.
        batch: Which data: a number for a minibatch of the search data, or the name of a split. Of minibatch 0 fewer
            tokens are the first ones of more, so that candidates can be compared on what they have in common.
    """

    tokens: int = 0
    batch: int | str = 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        values: Measured objectives and constraints by name; known objectives are never among them.
        variances: The variance of a value's error, by name, where it was measured.
        samples: Per-sequence values by name, for paired comparisons.
        attributes: Anything else worth keeping; JSON, except for the tables of a gradient.
    """

    values: Mapping[str, float]
    variances: Mapping[str, float] | None = None
    samples: Mapping[str, Sequence[float]] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What a worker may use.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:1".
        threads: CPU threads for a worker; None leaves the default.
    """

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not self.device:
            raise ProblemError(f"The device is {self.device!r}; expected 'auto', 'cpu', 'cuda' or such as 'cuda:1'.")
        threads = self.threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ProblemError(f"threads is {threads!r}; expected a whole number from 1, or None.")


class Problem(ABC):
    """Decisions and how good they are. The constructor is cheap and holds no weights; `setup` loads.

    A problem of one's own sets `space` and `objectives` and writes `evaluate`. What else it can do is told by the
    protocols below (`HasMoves`, `HasRepair`, `HasCosts`, `HasFeatures`, `HasSensitivities`, `HasGradient`).
    """

    space: Space
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint] = ()
    fidelity: Fidelity = Fidelity()
    measurements: Mapping[str, Fidelity] = MappingProxyType({})
    """Data that the finalists are measured on after the search, by purpose, such as "held-out".

    On "validation" the front is compared with the baselines first: see `moopt.never_worse`.
    """
    exclusive: Collection[str] = ()
    """Purposes of `measurements` whose jobs wait until all other workers are idle, such as latency."""
    needs: Mapping[str, float] = MappingProxyType({})
    """What a worker asks a cluster for, in Ray's terms: "CPU", "GPU", "memory" in bytes, or resources of one's own."""
    rungs: Sequence[int] = ()
    """Tokens of screens that say something, the cheapest first, all below those of `fidelity`."""
    gradient_tokens: int = 0
    """Tokens of a gradient that says something; 0: as many as an evaluation has."""
    sensitivity: Fidelity | None = None
    """With `sensitivities` and `costs`: how the table a study opens with is made; its `batch` is the method."""
    smooth: bool = False
    """Whether what is measured changes smoothly with numbers, as in merges: quadratics of them tell much then."""
    first: Sequence[str] = ()
    """Decisions to settle before all others, by what is measured, such as a merge before its bits; none: all at once.

    Meanwhile the others are as in the first baseline; `later_baselines` go on from what was found.
    """

    def setup(self, resources: Resources) -> None:  # noqa: B027 - most problems load nothing
        """Load what `evaluate` needs; called once in each worker."""

    @abstractmethod
    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        """Measure every objective that is not known, and every constraint."""

    def forward_tokens(self, kind: str, fidelity: Fidelity) -> int:
        """What a job of a kind costs, in forward tokens; a backward pass counts two."""
        return fidelity.tokens

    def known(self, config: Config) -> Mapping[str, float]:
        """The exact values of the known objectives (and constraints), from the configuration alone."""
        return {}

    def baselines(self) -> Mapping[str, Config]:
        """Named configurations that every study starts from and every picture shows."""
        return {}

    def later_baselines(self, config: Config) -> Mapping[str, Config]:
        """Further baselines, once the decisions that come `first` are settled as in `config`."""
        return {}

    def decisions(self) -> list[dict[str, Any]]:
        """How to draw the space: for every variable its `name`, `row`, `column` and `label`."""
        return [{"name": name, "row": name, "column": "value", "label": name} for name in self.space.names]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """`identity` must match for a stored study to go on; a changed `environment` only warns."""
        return {"identity": {"problem": type(self).__qualname__}, "environment": {}}


@runtime_checkable
class HasMoves(Protocol):
    """Proposes variations that make sense for the problem, such as a level switch."""

    def moves(self, config: Config, rng: np.random.Generator) -> Config:
        """A variation of `config`."""


@runtime_checkable
class HasRepair(Protocol):
    """Turns any configuration into one that the problem accepts."""

    def repair(self, config: Config, rng: np.random.Generator) -> Config:
        """The repaired configuration."""


@runtime_checkable
class HasCosts(Protocol):
    """Has one integer resource, additive over the decisions, such as bytes."""

    def costs(self) -> IntArray:
        """The cost of each option, [decisions, options]; -1 where a decision has fewer options."""


@runtime_checkable
class HasResources(Protocol):
    """Has costs of several kinds, such as bytes of the weights and of the cache; `costs` is their sum."""

    def resources(self) -> Mapping[str, IntArray]:
        """The cost of each option by kind, [decisions, options] each; -1 where a decision has fewer options."""


@runtime_checkable
class HasFeatures(Protocol):
    """Knows better numbers for a surrogate than the encoded configuration."""

    def features(self, config: Config) -> FloatArray:
        """The features of `config`, [f]."""


@runtime_checkable
class HasSensitivities(Protocol):
    """Estimates what each single decision costs in quality, before anything is searched."""

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The estimated loss of setting one decision to one option, [decisions, options]; inf where there is none."""


@runtime_checkable
class HasGradient(Protocol):
    """Estimates what each single change of a candidate would do to its loss."""

    def gradient(self, config: Config, fidelity: Fidelity) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """Values at `config`, and the linear and the curvature term of each change, [decisions, options] each."""


CAPABILITIES: Mapping[str, type] = {
    "moves": HasMoves,
    "repair": HasRepair,
    "costs": HasCosts,
    "features": HasFeatures,
    "sensitivities": HasSensitivities,
    "gradient": HasGradient,
}


def capabilities(problem: Problem) -> frozenset[str]:
    """The names of the optional methods that a problem has; one set to None says that it cannot after all."""
    return frozenset(name for name in CAPABILITIES if callable(getattr(problem, name, None)))


def known_values(problem: Problem, config: Config) -> dict[str, float]:
    """What `problem.known` gives, as plain numbers.

    Raises:
        ProblemError: it raises, lacks an objective that is declared as known, or gives what is no finite number.
    """
    try:
        found = problem.known(config)
    except Exception as error:
        raise ProblemError(f"known raised {error!r}; expected a number for each name.") from error
    if not isinstance(found, Mapping):
        raise ProblemError(f"known gives {found!r}; expected a number for each name.")
    if lacking := [o.name for o in problem.objectives if o.known and o.name not in found]:
        raise ProblemError(f"known gives no {', '.join(lacking)}, which the problem declares as known.")
    if bad := [f"{name} = {value!r}" for name, value in found.items() if not is_finite(value)]:
        raise ProblemError(f"known gives {', '.join(bad)}; expected finite numbers.")
    return {name: float(value) for name, value in found.items()}


def configurations(problem: Problem, method: str, given: object) -> dict[str, Config]:
    """What a method of a problem gives by name, each as the space has it.

    Raises:
        ProblemError: it gives something else.
        SpaceError: one is not of the space; says which.
    """
    kind = type(problem).__name__
    if not isinstance(given, Mapping):
        raise ProblemError(f"{kind}.{method} gives {given!r}; expected configurations by name.")
    found = {}
    for label, config in given.items():
        try:
            found[label] = problem.space.validate(config)
        except SpaceError as error:
            raise SpaceError(f"{label!r} of {kind}.{method}: {error}") from error
    return found


def counted(values: FloatArray, objectives: Sequence[Objective]) -> FloatArray:
    """Values [..., m], signs turned, on the scales of their objectives: logarithms where factors count.

    For distances: it keeps the order, but what is at most an objective's `least` on a logarithmic scale, 0 and below
    included, is as if it were that, so that dominance is for the values themselves.
    """
    logs = np.array([objective.scale == "log" for objective in objectives])
    if not logs.any():
        return values
    signs = np.array([objective.sign for objective in objectives])
    least = np.array([objective.least for objective in objectives])
    return np.where(logs, signs * np.log(np.maximum(signs * values, least)), values)


def is_finite(value: object) -> bool:
    """Whether something is a number, of numpy or not, and finite."""
    try:
        return not isinstance(value, (str, bytes)) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def plain(value: Any) -> Any:
    """What JSON makes of a value, numpy's numbers and arrays included.

    Raises:
        TypeError, ValueError, RecursionError: it cannot be stored as JSON.
    """

    def of_numpy(part: object) -> object:
        if isinstance(part, (np.generic, np.ndarray)):
            return part.tolist()
        raise TypeError(f"{part!r} is no JSON")

    return json.loads(json.dumps(value, default=of_numpy))


def _named(name: object, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise ProblemError(f"An {what} is named {name!r}; expected a non-empty string.")
    if name in TAKEN:
        raise ProblemError(
            f"An {what} is named {name!r}, as a column of every table of trials is; choose another name."
        )
