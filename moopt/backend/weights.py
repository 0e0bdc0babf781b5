"""The weights of a model that can be quantized: their names, shapes and how servers fuse them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from moopt.errors import QuantizationError

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("w1", "w3"),
)
"""Linears that read the same input and that servers store as one: their widths are tied."""
TIES = ("fused", "experts", "linear", "block")
"""What may be tied: see `groups`."""
EACH = re.compile(r"experts\.\d+")
"""One expert in a module's name."""


@dataclass(frozen=True)
class Weight:
    """One matrix.

    Attributes:
        name: The module's name.
        shape: (outputs, inputs), or (vocabulary, hidden) of an embedding.
        kind: "linear", "embedding" (also the output head where the two are tied) or "head".
    """

    name: str
    shape: tuple[int, int]
    kind: str = "linear"

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return self.shape[0] * self.shape[1]

    @property
    def block(self) -> int | None:
        """The number of the block it is in."""
        return block_number(self.name)


def block_number(name: str) -> int | None:
    """The number of the block that a parameter is in; None if it is in none."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Inventory:
    """What a model consists of, in numbers."""

    weights: tuple[Weight, ...]
    rest: dict[str, tuple[int, ...]]
    """The shapes of all other parameters; they stay at 16 bits."""

    @property
    def is_mixture(self) -> bool:
        """Whether it has experts, of which a token goes through some."""
        return any(EACH.search(weight.name) for weight in self.weights)

    def linears(self) -> tuple[Weight, ...]:
        """The linear layers' weights without embedding and head."""
        return tuple(w for w in self.weights if w.kind == "linear")

    def table(self, kind: str) -> Weight | None:
        """The embedding or the head, if there is one of its own."""
        return next((w for w in self.weights if w.kind == kind), None)


def inventory(model: Any) -> Inventory:
    """List the matrices of a model (with or without weights) and everything else.

    Embedding and output head are found by transformers' accessors; position and type embeddings count as the rest.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    weights, taken = [], set()
    for name, module in model.named_modules():
        if module is embedding:
            kind = "embedding"
        elif module is head:
            kind = "head"
        elif isinstance(module, nn.Linear) and module.out_features > 1:  # a single output is a gate
            kind = "linear"
        else:
            continue
        taken.add(f"{name}.weight")
        if not (kind == "head" and tied):
            rows, columns = module.weight.shape
            weights.append(Weight(name, (int(rows), int(columns)), kind))
    rest = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in taken}
    return Inventory(tuple(weights), rest)


def skipped(weights: tuple[Weight, ...], patterns: tuple[str, ...]) -> tuple[Weight, ...]:
    """The weights whose names match a pattern such as "*.down_proj" or "model.layers.0.*".

    Raises:
        QuantizationError: a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch(w.name, pattern) for w in weights):
            raise QuantizationError(f"The skip pattern {pattern!r} matches no layer; one is {weights[0].name!r}.")
    return tuple(w for w in weights if any(fnmatch(w.name, p) for p in patterns))


def groups(weights: tuple[Weight, ...], tie: str) -> dict[str, tuple[Weight, ...]]:
    """The weights that share a decision, by the decision's name.

    Args:
        weights: Linear weights in the model's order.
        tie: "fused" ties what servers fuse, "experts" that and all experts of a block, "linear" nothing, "block" whole
            blocks.
    """
    found: dict[str, list[Weight]] = {}
    short = _short_names(weights)
    for weight in weights:
        parent, _, leaf = weight.name.rpartition(".")
        mates = next((f for f in FUSED if leaf in f), (leaf,)) if tie in ("fused", "experts") else (leaf,)
        present = [w for w in weights if w.name in {f"{parent}.{m}" for m in mates}]
        stem = short[weight.name].split(".", 1)[-1].rpartition(".")[0]
        name = "_".join(short[w.name].split(".", 1)[-1].removeprefix(f"{stem}.") for w in present)
        name = f"{EACH.sub('experts', stem) if tie == 'experts' else stem}.{name}" if stem else name
        key = short[weight.name].split(".", 1)[0]
        if tie == "block" and weight.block is not None:
            found.setdefault(key, []).append(weight)
        else:
            found.setdefault(f"{key}.{name}" if weight.block is not None else name, []).append(weight)
    return {name: tuple(members) for name, members in found.items()}


def _short_names(weights: tuple[Weight, ...]) -> dict[str, str]:
    """Block number and last part, such as "3.q" or "3.experts.7.up"; the whole path where that is not unique."""
    last = {}
    for w in weights:
        expert, leaf = EACH.search(w.name), w.name.rsplit(".", 1)[-1].removesuffix("_proj")
        last[w.name] = f"{w.block}.{expert[0]}.{leaf}" if expert else f"{w.block}.{leaf}"
    times: dict[str, int] = {}
    for short in last.values():
        times[short] = times.get(short, 0) + 1
    return {
        w.name: last[w.name] if times[last[w.name]] == 1 else f"{w.block}.{w.name.split(f'.{w.block}.', 1)[-1]}"
        for w in weights
    }


def module_of(model: nn.Module, weight: Weight) -> Any:
    """The module that holds a weight."""
    return model.get_submodule(weight.name)


def expert_parameters(found: Inventory) -> int:
    """How many parameters sit in stacked expert tensors, which are not linears and stay at 16 bits."""
    return sum(int(torch.Size(shape).numel()) for shape in found.rest.values() if len(shape) == 3)
