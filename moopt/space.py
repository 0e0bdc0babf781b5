"""The decisions of a problem: what a configuration may be. Knows nothing of objectives or models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import call, itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from moopt.errors import SpaceError

Config = dict[str, Any]
FloatArray = npt.NDArray[np.float64]

LARGEST = 2**53
"""Whole numbers beyond it are not exact when encoded."""


class Variable(ABC):
    """One decision. Encoded as a number between `lower` and `upper`."""

    lower: float
    upper: float
    discrete: bool = True

    @abstractmethod
    def encode(self, value: Any) -> float:
        """The number that stands for `value`. Raises `SpaceError` for a value that is not allowed."""

    @abstractmethod
    def at(self, code: float) -> Any:
        """The value of a code that `encode` gives."""

    def decode(self, code: float) -> Any:
        """The value nearest to `code`, clipped to the bounds: the inverse of `encode`."""
        return self.at(min(max(math.floor(code + 0.5) if self.discrete else code, self.lower), self.upper))

    def codec(self) -> tuple[Callable[[Any], float], Callable[[float], Any]]:
        """`encode` and `at` for what is known to be allowed: look-ups where that is faster."""
        return self.encode, self.at

    @abstractmethod
    def neighbours(self, value: Any) -> tuple[Any, ...]:
        """The values one step away."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON description, equal for equal variables: part of a study's identity."""

    def __repr__(self) -> str:
        arguments = ", ".join(str(v) for k, v in self.describe().items() if k != "kind")
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variable) and self.describe() == other.describe()

    __hash__ = None  # type: ignore[assignment]


class _Listed(Variable):
    """A variable whose values are listed; encoded as the index."""

    def __init__(self, *values: Any) -> None:
        name = type(self).__name__
        if len(values) == 1 and isinstance(values[0], (list, tuple)):
            raise SpaceError(f"{name} got one {type(values[0]).__name__}; give the values themselves: {name}(2, 3, 4).")
        if not values:
            raise SpaceError(f"{name} got no values; give at least one.")
        self.values = tuple(v.item() if isinstance(v, np.generic) else v for v in values)
        for value in self.values:
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, (int, float, str, bool)) or not finite:
                raise SpaceError(f"{name} got the value {value!r}; expected finite numbers, strings or booleans.")
        self._index = {value: float(index) for index, value in enumerate(self.values)}
        if len(self._index) != len(self.values):
            raise SpaceError(f"{name} got equal values in {self.values}; each may stand once.")
        self.lower, self.upper = 0.0, float(len(self.values) - 1)

    def encode(self, value: Any) -> float:
        try:
            return self._index[value]
        except (KeyError, TypeError):
            raise SpaceError(f"got {value!r}, expected one of {', '.join(map(repr, self.values))}") from None

    def at(self, code: float) -> Any:
        return self.values[int(code)]

    def codec(self) -> tuple[Callable[[Any], float], Callable[[float], Any]]:
        return self._index.__getitem__, dict(enumerate(self.values)).__getitem__  # type: ignore[return-value]

    def describe(self) -> dict[str, Any]:
        return {"kind": type(self).__name__.lower(), "values": list(self.values)}


class Ordinal(_Listed):
    """One of an ordered list of values, such as bit widths: `Ordinal(2, 3, 4, 8)`."""

    def neighbours(self, value: Any) -> tuple[Any, ...]:
        index = int(self.encode(value))
        return tuple(self.values[i] for i in (index - 1, index + 1) if 0 <= i < len(self.values))


class Choice(_Listed):
    """One of a list of values without an order, such as quantizer names: `Choice("rtn", "hqq")`."""

    def neighbours(self, value: Any) -> tuple[Any, ...]:
        index = int(self.encode(value))
        return tuple(v for i, v in enumerate(self.values) if i != index)


class Integer(Variable):
    """A whole number from `low` to `high`, both included."""

    def __init__(self, low: int, high: int) -> None:
        whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in (low, high))
        if not whole or not -LARGEST <= low <= high <= LARGEST:
            raise SpaceError(f"Integer got {low!r} and {high!r}; expected whole numbers up to 2**53, the lower first.")
        self.lower, self.upper = float(low), float(high)

    def encode(self, value: Any) -> float:
        if isinstance(value, (bool, str)) or int(value) != value or not self.lower <= value <= self.upper:
            raise SpaceError(f"got {value!r}, expected a whole number from {self.lower:.0f} to {self.upper:.0f}")
        return float(value)

    def at(self, code: float) -> int:
        return int(code)

    def neighbours(self, value: Any) -> tuple[int, ...]:
        at = int(self.encode(value))
        return tuple(v for v in (at - 1, at + 1) if self.lower <= v <= self.upper)

    def describe(self) -> dict[str, Any]:
        return {"kind": "integer", "low": int(self.lower), "high": int(self.upper)}


class Float(Variable):
    """A real number from `low` to `high`; its neighbours are a twentieth of the range away."""

    discrete = False

    def __init__(self, low: float, high: float) -> None:
        numbers = all(isinstance(v, (int, float, np.number)) and math.isfinite(v) for v in (low, high))
        if not numbers or not low < high:
            raise SpaceError(f"Float got {low!r} and {high!r}; expected two finite numbers, the lower first.")
        self.lower, self.upper = float(low), float(high)

    def encode(self, value: Any) -> float:
        if isinstance(value, (bool, str)) or not self.lower <= value <= self.upper:
            raise SpaceError(f"got {value!r}, expected a number from {self.lower} to {self.upper}")
        return float(value)

    def at(self, code: float) -> float:
        return float(code)

    def neighbours(self, value: Any) -> tuple[float, ...]:
        step = (self.upper - self.lower) / 20
        return tuple(v for v in (value - step, value + step) if self.lower <= v <= self.upper)

    def describe(self) -> dict[str, Any]:
        return {"kind": "float", "low": self.lower, "high": self.upper}


class Simplex:
    """Weights from 0 that sum to 1, one for each of k parts: `Simplex("a", "b", "c")`.

    In a space it is k - 1 variables from 0 to 1, named "NAME.PART" for all parts but the last: each says how much of
    what the parts before it have left goes to its own. u gives the share 1 - (1 - u) ** (1 / j) of it, with j parts
    behind it, so that uniform draws of the variables are uniform draws of the weights.
    """

    def __init__(self, *parts: str) -> None:
        good = all(isinstance(part, str) and part for part in parts)
        if len(parts) < 2 or not good or len(set(parts)) < len(parts):
            raise SpaceError(f"Simplex got {parts}; expected two names or more, each once: Simplex('a', 'b').")
        self.parts = parts

    def variables(self, name: str) -> dict[str, Variable]:
        """The variables that stand for it in a space where it is called `name`."""
        return {f"{name}.{part}": Float(0.0, 1.0) for part in self.parts[:-1]}

    def weights(self, name: str, config: Mapping[str, Any]) -> dict[str, float]:
        """The weight of every part in a configuration."""
        found, left = {}, 1.0
        for behind, part in zip(range(len(self.parts) - 1, 0, -1), self.parts, strict=False):
            kept = left * (1.0 - config[f"{name}.{part}"]) ** (1.0 / behind)
            found[part], left = left - kept, kept
        return {**found, self.parts[-1]: left}

    def config(self, name: str, weights: Mapping[str, float]) -> Config:
        """The variables that give these weights; the inverse of `weights`.

        Raises:
            SpaceError: they are not one number from 0 for every part, or do not sum to 1.
        """
        given = [weights.get(part, math.nan) for part in self.parts]
        if set(weights) != set(self.parts) or not min(given) >= 0 or abs(sum(given) - 1) > 1e-6:
            raise SpaceError(f"Got the weights {dict(weights)}; expected numbers from 0 that sum to 1, for {self!r}.")
        found, left = {}, 1.0
        for behind, part, weight in zip(range(len(given) - 1, 0, -1), self.parts, given, strict=False):
            share = min(weight / left, 1.0) if left > 0 else 0.0
            found[f"{name}.{part}"], left = 1.0 - (1.0 - share) ** behind, left - weight
        return found

    def __repr__(self) -> str:
        return f"Simplex({', '.join(map(repr, self.parts))})"


class Space(Mapping[str, Variable]):
    """Named variables. A configuration is a dict with one allowed value a name.

    Encoded configurations are rows of length d, the number of variables, in the order of the names.

    Args:
        variables: By name; a `Simplex` becomes several.

    Attributes:
        simplexes: Those among them, by name.
    """

    def __init__(self, variables: Mapping[str, Variable | Simplex]) -> None:
        if not variables:
            raise SpaceError("A space got no variables; give at least one.")
        self._variables: dict[str, Variable] = {}
        self.simplexes: dict[str, Simplex] = {}
        for name, variable in variables.items():
            if not isinstance(name, str) or not name:
                raise SpaceError(f"A variable is named {name!r}; expected a non-empty string.")
            if isinstance(variable, Simplex):
                self.simplexes[name] = variable
            elif not isinstance(variable, Variable):
                raise SpaceError(
                    f"{name!r} is {variable!r}; expected a variable: Ordinal, Choice, Integer, Float or Simplex."
                )
            found = variable.variables(name) if isinstance(variable, Simplex) else {name: variable}
            if again := sorted(found.keys() & self._variables.keys()):
                raise SpaceError(f"Two variables are named {again[0]!r}; give one another name.")
            self._variables |= found
        self._encoders, self._decoders = zip(*(v.codec() for v in self._variables.values()), strict=True)
        self.names = tuple(self._variables)
        self._values = itemgetter(*self.names)
        self.lower: FloatArray = np.array([v.lower for v in self._variables.values()])
        self.upper: FloatArray = np.array([v.upper for v in self._variables.values()])
        self.discrete: npt.NDArray[np.bool_] = np.array([v.discrete for v in self._variables.values()])
        steps = np.where(self.discrete, self.upper - self.lower + 1, math.inf)
        self.size = math.prod(steps.tolist())
        """How many configurations there are; infinite with a `Float`."""

    def __getitem__(self, name: str) -> Variable:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def validate(self, config: Any) -> Config:
        """The same configuration in the space's order and with the space's own values.

        Raises:
            SpaceError: a name is missing or unknown, or a value is not allowed; says which.
        """
        if not isinstance(config, Mapping):
            hint = "its .config" if hasattr(config, "config") else "values by name"
            raise SpaceError(f"Got the configuration {config!r}; expected {hint}.")
        missing = [name for name in self.names if name not in config]
        unknown = [name for name in config if name not in self._variables]
        if missing or unknown:
            raise SpaceError(
                f"The configuration lacks {_some(missing)} and has unknown names {_some(unknown)}; "
                f"expected exactly the {len(self)} names of the space."
            )
        valid = {}
        for name, variable in self._variables.items():
            try:
                valid[name] = variable.at(variable.encode(config[name]))
            except (SpaceError, TypeError, ValueError, OverflowError) as error:
                reason = str(error) if isinstance(error, SpaceError) else f"got {config[name]!r}, expected {variable}"
                raise SpaceError(f"Variable {name!r} {reason}.") from None
        return valid

    def encode(self, config: Mapping[str, Any]) -> FloatArray:
        """The row (d) of a valid configuration."""
        try:
            return np.array(list(map(call, self._encoders, self.key(config))))
        except (KeyError, TypeError):
            self.validate(config)  # says which entry is not allowed
            raise

    def decode(self, row: npt.ArrayLike) -> Config:
        """The configuration nearest to a row (d), clipped to the bounds; the inverse of `encode`."""
        return self.decode_all(np.asarray(row, dtype=float)[None])[0]

    def decode_all(self, rows: npt.ArrayLike) -> list[Config]:
        """The configurations nearest to rows (n x d): what `decode` does, faster for many."""
        codes = np.asarray(rows, dtype=float)
        if codes.ndim != 2 or codes.shape[1] != len(self):
            raise SpaceError(f"Got rows of shape {codes.shape[1:]}, expected ({len(self)},): one code a variable.")
        if np.isnan(codes).any():
            name = self.names[int(np.isnan(codes).any(axis=0).argmax())]
            raise SpaceError(f"The code of {name!r} is NaN; expected a number.")
        exact = np.where(self.discrete, np.floor(codes + 0.5), codes)
        clipped = np.minimum(np.maximum(exact, self.lower), self.upper).tolist()
        return [dict(zip(self.names, map(call, self._decoders, each), strict=True)) for each in clipped]

    def units(self, rows: FloatArray) -> FloatArray:
        """Encoded configurations [n, d] with each variable scaled to [0, 1]; 0 where it has one value."""
        span = self.upper - self.lower
        found: FloatArray = (rows - self.lower) / np.where(span > 0, span, 1.0)
        return found

    def sample(self, rng: np.random.Generator) -> Config:
        """A configuration drawn uniformly."""
        margin = self.discrete / 2
        return self.decode(self.lower - margin + rng.random(len(self)) * (self.upper - self.lower + 2 * margin))

    def neighbours(self, config: Mapping[str, Any]) -> Iterator[Config]:
        """Every configuration that differs by one step in one variable."""
        for name, variable in self._variables.items():
            for value in variable.neighbours(config[name]):
                yield {**config, name: value}

    def key(self, config: Mapping[str, Any]) -> tuple[Any, ...]:
        """What is equal exactly for equal configurations, and hashable."""
        return self._values(config) if len(self.names) > 1 else (config[self.names[0]],)

    def describe(self) -> dict[str, dict[str, Any]]:
        """A JSON description, equal for equal spaces."""
        return {name: variable.describe() for name, variable in self._variables.items()}

    def __repr__(self) -> str:
        return f"Space({len(self)} variables: {_some(self.names)})"


def from_description(description: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that `describe` described."""
    return Space({name: _variable(entry) for name, entry in description.items()})


def _variable(entry: Mapping[str, Any]) -> Variable:
    match entry["kind"]:
        case "ordinal":
            return Ordinal(*entry["values"])
        case "choice":
            return Choice(*entry["values"])
        case "integer":
            return Integer(entry["low"], entry["high"])
        case "float":
            return Float(entry["low"], entry["high"])
        case other:
            raise SpaceError(f"Got a variable of kind {other!r}; expected ordinal, choice, integer or float.")


def _some(names: Sequence[str], most: int = 4) -> str:
    """A short list for a message."""
    if not names:
        return "none"
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
