"""Several problems over one model as one: merge coefficients, bits and the cache's pairs, measured as it would ship."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from moopt.backend import models
from moopt.backend.exporters.shipment import Shipment
from moopt.backend.joint import JointWorkbench, Shipped
from moopt.backend.kv import Pair, Preset, Scheme
from moopt.backend.merging.tasks import Function, Task
from moopt.backend.options import Option
from moopt.backend.quantizers import RTN, Quantizer
from moopt.backend.simulated import Simulated
from moopt.backend.text import Text
from moopt.errors import ProblemError
from moopt.exporting import Compared
from moopt.never_worse import VALIDATION
from moopt.problem import Evaluation, Fidelity, HasMoves, Problem, Resources, capabilities
from moopt.space import Config, Simplex, Space, Variable
from moopt_problems import checks, together
from moopt_problems.benched import Benched
from moopt_problems.bit_allocation import BitAllocation
from moopt_problems.kv_precision import KVCachePrecision
from moopt_problems.model_merge import ModelMerge

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOVED_PARTS = 0.3
"""The chance that a move changes a further part."""
PARTS = "parts"
"""How a joint table is made: each part's by its own method and tokens."""
BASELINES = 4
"""How many baselines of a part are kept: the largest, the smallest, and evenly between."""


class Part(Protocol):
    """What a problem has that can be a part."""

    def apply(self, candidate: Shipped, config: Config) -> Shipped:
        """A candidate with what a configuration of the part decides."""


class Joint(Benched[JointWorkbench]):
    """One search over all that is decided of a model: a candidate is merged, quantized, and measured with its cache.

    Args:
        parts: At least two of a `ModelMerge`, a `BitAllocation` and a `KVCachePrecision` over one model, by the names
            that their decisions get: "bits" makes "bits/3.mlp.down". Merged are the tasks and distances of the first,
            the sizes of the others, and what is measured by text once, on the candidate that all of them made.
        teacher: The model that kl and top1_agreement compare with. Without a merge it is the model itself.
        text: What is evaluated on besides tasks: "mix", "prose", "docstrings", "code", or a path.
        tokens: Tokens of an evaluation.
        context: Tokens of a sequence.
        held_out: Tokens of the measurement on held-out text at the end; 0 for none, of tasks neither.
        validation: Tokens of the text by which points of the front compete with baselines before that; 0 for none.

    Raises:
        ProblemError: the parts are not of one model, or cannot be parts; says why.
    """

    def __init__(
        self,
        parts: Mapping[str, Problem],
        teacher: str | None = None,
        text: str = "mix",
        tokens: int = 2048,
        context: int = 512,
        held_out: int = 6144,
        validation: int = 2048,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        checks.whole(1, tokens=tokens, context=context)
        checks.whole(0, held_out=held_out, validation=validation)
        self.parts = together.ordered(parts)
        self.text, self.context = Text(text), context
        self.model = together.one_model(self.parts)
        self.members: Mapping[str, str] = {}
        self.base: str | None = None
        self.tasks: tuple[Task, ...] = ()
        self.quantizer: Quantizer = RTN()
        self.group_size = 64
        self.simulated: dict[Option, Simulated] = {}
        for part in self.parts.values():
            if isinstance(part, ModelMerge):
                self.members, self.base, self.tasks = part.models, part.base, part.tasks
            elif isinstance(part, BitAllocation):
                self.quantizer, self.group_size, self.simulated = part.quantizer, part.group_size, part.simulated
                self.tasks += tuple(map(Function, part.search_metrics))
            elif isinstance(part, KVCachePrecision):
                self.tasks += tuple(Function(metric) for metric in part.metrics if metric.when == "every")
        if hasattr(self, "scheme"):
            for part in self.parts.values():
                if isinstance(part, BitAllocation) and part.server is not None:
                    part.server.refuse_pairs()
        self.objectives = together.union(self.parts)
        names = {objective.name for objective in self.objectives}
        self.teacher = teacher if self.members or teacher is not None else self.model
        if self.teacher is None and names & {"kl", "top1_agreement"}:
            raise ProblemError(
                "kl and top1_agreement need somebody to compare a merge with: give teacher=, the model whose answers "
                "are wanted, or leave both out of the objectives."
            )
        if self.teacher is None and "perplexity" in names:
            self.teacher = self.model
        if self.teacher is not None:
            together.check_teacher(self.teacher, self.model)
        self.space = Space(dict(self._variables()))
        self.first = [name for name in self.space.names if self._merge and name.startswith(f"{self._merge}/")]
        self.fidelity = Fidelity(tokens, 0)
        splits = ((VALIDATION, validation), ("held-out", held_out))
        self.measurements = {split: Fidelity(count, split) for split, count in splits if count}
        tables = [part.sensitivity for part in self._priced.values()]
        if all(tables):
            self.sensitivity = Fidelity(sum(table.tokens for table in tables if table is not None), PARTS)

    @property
    def _priced(self) -> dict[str, BitAllocation | KVCachePrecision]:
        """The parts that decide bytes."""
        return {name: part for name, part in self.parts.items() if isinstance(part, BitAllocation | KVCachePrecision)}

    def _opened(self, resources: Resources) -> JointWorkbench:
        return JointWorkbench(self, resources)

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        return self._ready.evaluate(self.shipped(config), fidelity)

    def shipped(self, config: Config) -> Shipped:
        """What a configuration decides, all parts together."""
        found = Shipped()
        for name, part in self.parts.items():
            found = cast(Part, part).apply(found, self.of_part(name, config))
        return found

    def shipment(self, config: Config) -> Shipment:
        """A candidate's weights, merged and quantized, as exporters get them: see `moopt.exporting`.

        Raises:
            ProblemError: no part decides widths.
        """
        name, bits = self._bits()
        valid = self.space.validate(config)
        candidate = self._ready.become(self.shipped(valid).recipe)[0]
        places = tuple(self.members.values()) or (self.model,)
        own, compared, preset = self.of_part(name, valid), None, None
        if hasattr(self, "scheme"):  # what was measured is not the weights alone
            preset = Preset(tuple(self.pairs(valid)), self.scheme)
        elif self.teacher is not None:
            compared = Compared(self.teacher, self.text.source, self.context, self.held_out_tokens)
        return Shipment(
            self.model, bits.layout, bits.options(own), bits.simulated,
            candidate.variants.quantized, candidate.stored, candidate.parameters(), self._ready.tokenizer, places,
            compared, bits.bytes(own), preset,
        )  # fmt: skip

    def raised(self, config: Config, holds: Callable[[Option], bool], fused: bool) -> Config:
        """A candidate each width of which holds: see `BitAllocation.raised`."""
        name, bits = self._bits()
        found = bits.raised(self.of_part(name, config), holds, fused)
        return {**config, **{f"{name}/{key}": value for key, value in found.items()}}

    def _bits(self) -> tuple[str, BitAllocation]:
        """The part that decides widths, and its name."""
        for name, part in self.parts.items():
            if isinstance(part, BitAllocation):
                return name, part
        raise ProblemError("No part decides widths; export the merge with `save` of its part, ModelMerge.")

    @property
    def scheme(self) -> Scheme:
        """How keys and values are packed; no attribute of one without such a part."""
        for part in self.parts.values():
            if isinstance(part, KVCachePrecision):
                return part.scheme
        raise AttributeError("scheme")

    def pairs(self, config: Config) -> list[Pair]:
        """The pair of every layer's keys and values."""
        name, part = next((n, p) for n, p in self.parts.items() if isinstance(p, KVCachePrecision))
        return part.pairs(self.of_part(name, config))

    def of_part(self, part: str, config: Config) -> Config:
        """A part's own configuration."""
        return {name: config[f"{part}/{name}"] for name in self.parts[part].space.names}

    def known(self, config: Config) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, part in self.parts.items():
            found |= part.known(self.of_part(name, config))
        return {o.name: found[o.name] for o in self.objectives if o.known}

    def forward_tokens(self, kind: str, fidelity: Fidelity) -> int:
        if kind == "sensitivity":
            parts = self._priced.values()
            return sum(part.forward_tokens(kind, part.sensitivity) for part in parts if part.sensitivity is not None)
        return fidelity.tokens if self.teacher is not None else 0

    def costs(self) -> IntArray:
        """Bytes of the file and of the cache that each option of the discrete decisions takes, [decisions, options]."""
        found: IntArray = self._stacked({name: part.costs() for name, part in self._priced.items()}, absent=-1)
        return found

    def resources(self) -> dict[str, IntArray]:
        """The same by part, with zeros for the decisions of others."""
        return {name: self._stacked({name: part.costs()}, absent=-1) for name, part in self._priced.items()}

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """What each part says of its own options, on the model before it is merged, [decisions, options].

        A method of merging is not told apart from another.

        Args:
            method: "parts": each part's own.
            tokens: Those of all parts together, as their own arguments say.
        """
        if method != PARTS:
            raise ProblemError(f"Got the sensitivities {method!r}; expected {PARTS!r}: each part has its own method.")
        tables = {}
        for name, part in self._priced.items():
            assert part.sensitivity is not None
            alone = copy.copy(part)
            alone.measurements = {}
            alone.setup(self._ready.resources)
            tables[name] = alone.sensitivities(str(part.sensitivity.batch), part.sensitivity.tokens)
        found: FloatArray = self._stacked(tables, absent=np.inf)
        return found

    def baselines(self) -> dict[str, Config]:
        """Every part's baselines, each with the other parts at the one that loses least; of many of them a few.

        With a merge those of the merge alone: the others' are for the best that was found, see `later_baselines`.
        """
        return {"plain": self._plain({}), **self._varied([self._merge] if self._merge else self.parts, {})}

    def later_baselines(self, config: Config) -> dict[str, Config]:
        """The baselines of bits and cache for the merge in a configuration."""
        merge = self._merge
        if merge is None:
            return {}
        return self._varied([name for name in self.parts if name != merge], {merge: self.of_part(merge, config)})

    @property
    def _merge(self) -> str | None:
        """The part that merges; None without one."""
        return next((name for name, part in self.parts.items() if isinstance(part, ModelMerge)), None)

    def _plain(self, settled: Mapping[str, Config]) -> Config:
        """What is settled of some parts, and of all others what loses least."""
        return self._joined({name: settled.get(name) or _plainest(part)[1] for name, part in self.parts.items()})

    def _varied(self, names: Iterable[str], settled: Mapping[str, Config]) -> dict[str, Config]:
        """The baselines of some parts, all other parts as they are settled, or at what loses least."""
        plain = self._plain(settled)
        varied = {
            f"{name}: {label}": {**plain, **{f"{name}/{key}": value for key, value in config.items()}}
            for name in names
            for label, config in _few(self.parts[name]).items()
        }
        return {label: config for label, config in varied.items() if config != plain}

    def moves(self, config: Config, rng: np.random.Generator) -> Config:
        """A move of one part, and now and then of another too: its own where it knows some, else a step."""
        names, changed = list(self.parts), dict(config)
        for place, number in enumerate(rng.permutation(len(names))):
            if place and rng.random() > MOVED_PARTS:
                break
            name, part = names[number], self.parts[names[number]]
            own = self.of_part(name, changed)
            if isinstance(part, HasMoves) and "moves" in capabilities(part):
                own = part.moves(own, rng)
            else:
                chosen = part.space.names[int(rng.integers(len(part.space)))]
                near = part.space[chosen].neighbours(own[chosen])
                own = {**own, chosen: near[int(rng.integers(len(near)))]} if near else own
            changed |= {f"{name}/{key}": value for key, value in own.items()}
        return changed

    def decisions(self) -> list[dict[str, Any]]:
        return [
            {**each, "name": f"{name}/{each['name']}", "column": f"{name}: {each['column']}"}
            for name, part in self.parts.items()
            for each in part.decisions()
        ]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        plain = {k: v for k, v in self._arguments.items() if k not in {"parts", "text", "teacher"}}
        return {
            "identity": {
                "problem": type(self).__qualname__,
                **plain,
                "text": self.text.identity,
                "teacher": None if self.teacher is None else models.identity(self.teacher),
                "parts": {name: part.fingerprint()["identity"] for name, part in self.parts.items()},
            },
            "environment": {"torch": torch.__version__, "cores": os.cpu_count()},
        }

    def _variables(self) -> list[tuple[str, Variable | Simplex]]:
        found: list[tuple[str, Variable | Simplex]] = []
        for name, part in self.parts.items():
            of_simplex = {v for n, simplex in part.space.simplexes.items() for v in simplex.variables(n)}
            found += [(f"{name}/{n}", simplex) for n, simplex in part.space.simplexes.items()]
            found += [(f"{name}/{n}", variable) for n, variable in part.space.items() if n not in of_simplex]
        return found

    def _stacked(self, tables: Mapping[str, Any], absent: float) -> Any:
        """The tables of parts as one, with zeros for the discrete decisions of other parts."""
        rows: list[Any] = []
        for name, part in self.parts.items():
            counts = [int(v.upper - v.lower) + 1 for v in part.space.values() if v.discrete]
            own = tables.get(name, np.zeros((len(counts), max(counts, default=0))))
            rows += [row[:count] for row, count in zip(own, counts, strict=True)]
        found = np.full((len(rows), max(map(len, rows))), absent, dtype=np.result_type(*tables.values()))
        for row, values in zip(found, rows, strict=True):
            row[: len(values)] = values
        return found

    def _joined(self, configs: Mapping[str, Config]) -> Config:
        return self.space.validate({f"{name}/{k}": v for name, config in configs.items() for k, v in config.items()})


def _few(part: Problem) -> dict[str, Config]:
    """The baselines of a part: all of a merge, else at most some, from the largest to the smallest."""
    every = part.baselines()
    if isinstance(part, ModelMerge) or len(every) <= BASELINES:
        return dict(every)
    labels = sorted(every, key=lambda name: -cast(Any, part).bytes(every[name]))
    return {labels[i]: every[labels[i]] for i in np.linspace(0, len(labels) - 1, BASELINES).round().astype(int)}


def _plainest(part: Problem) -> tuple[str, Config]:
    """The baseline that loses least: of a merge the mean, else what costs most."""
    every = part.baselines()
    if isinstance(part, ModelMerge):
        label = "mean" if "mean" in every else next(iter(every))
        return label, every[label]
    size = cast(Any, part).bytes
    label = max(every, key=lambda name: size(every[name]))
    return label, every[label]
