"""What a merge is made of: a method, and how much of each model goes into each part of the network."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from numbers import Real
from typing import Literal, get_args

from moopt.backend.merging import operators
from moopt.backend.weights import block_number
from moopt.errors import MergeError

Per = Literal["model", "block", "module"]
"""What has coefficients of its own: whole models, their blocks, or their modules."""
REST = "rest"
"""The group of what is in no block."""
WHOLE = ""
"""The group of everything."""


def group(tensor: str, per: Per) -> str:
    """The group that a tensor belongs to: its block's number, its module's name, or `WHOLE`."""
    match per:
        case "model":
            return WHOLE
        case "block":
            number = block_number(tensor)
            return REST if number is None else str(number)
        case "module":
            return tensor.rpartition(".")[0] or REST
    raise MergeError(f"Got per={per!r}; expected one of {', '.join(get_args(Per))}.")


_set = object.__setattr__
"""What sets an attribute of a frozen object, while it is made."""


def _number(called: str, value: object, of: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise MergeError(f"Got the {called} {value!r}{of}; expected a finite number.")
    return float(value)


def _numbers(called: str, values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The numbers of every model and group, as they are now."""
    return {
        model: {each: _number(called, value, f" of {model}") for each, value in groups.items()}
        for model, groups in values.items()
    }


@dataclass(frozen=True)
class Recipe:
    """A merge.

    Attributes:
        method: One of `moopt.backend.merging.METHODS`.
        weights: By model, its weight in every group (see `group`).
        densities: By model, the share of its differences that is kept in every group; what is not named keeps all.
        per: What the groups are.
        scale: What the merged difference from the base is multiplied by.
        seed: Decides, with all the rest, what chance drops.

    Raises:
        MergeError: there is no such method, or a number is none that it can have.
    """

    method: str
    weights: Mapping[str, Mapping[str, float]]
    densities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    per: Per = "model"
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        operators.named(self.method)
        group("", self.per)
        _set(self, "scale", _number("scale", self.scale))
        _set(self, "weights", _numbers("weight", self.weights))
        _set(self, "densities", _numbers("density", self.densities))
        for model, each in self.densities.items():
            if bad := [value for value in each.values() if not 0 <= value <= 1]:
                raise MergeError(f"Got the density {bad[0]!r} of {model}; expected a number from 0 to 1.")

    def check(self, models: Collection[str]) -> None:
        """Refuse a recipe that names a model which is not among those to merge.

        Raises:
            MergeError: it does; says which, and what there is.
        """
        if unknown := [model for model in {**self.weights, **self.densities} if model not in models]:
            raise MergeError(f"The recipe names a model {unknown[0]!r}; expected some of {', '.join(models)}.")

    @classmethod
    def of(
        cls, method: str, weights: Mapping[str, float], densities: Mapping[str, float] | None = None,
        scale: float = 1.0, seed: int = 0,
    ) -> Recipe:  # fmt: skip
        """A recipe with one weight, and at most one density, for each whole model."""
        whole, kept = ({m: {WHOLE: v} for m, v in each.items()} for each in (weights, densities or {}))
        return cls(method, whole, kept, scale=scale, seed=seed)

    def weight(self, model: str, tensor: str) -> float:
        """The weight that a model's tensor has."""
        try:
            return self.weights[model][group(tensor, self.per)]
        except KeyError:
            raise MergeError(f"The recipe has no weight for {tensor!r} of {model}.") from None

    def density(self, model: str, tensor: str) -> float:
        """The share of a model's tensor that is kept."""
        return self.densities.get(model, {}).get(group(tensor, self.per), 1.0)

    def draw(self, model: str, tensor: str) -> operators.Draw:
        """Draws what is kept of a model's tensor: the same each time, and for every recipe another one."""
        told = hashlib.sha256(f"{self._digest} {model} {tensor}".encode()).digest()
        return operators.seeded(int.from_bytes(told[:8], "big") >> 1)

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
