"""How many bits the keys and values of each layer are cached at: the front of the cache's bytes and of the loss."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moopt.backend import metrics as user
from moopt.backend import models
from moopt.backend.candidate import choose_device
from moopt.backend.joint import Shipped
from moopt.backend.kv import groups as grouping
from moopt.backend.kv.pairs import WIDTHS, Pair, Scheme, scheme_of
from moopt.backend.kv.presets import Preset
from moopt.backend.kv.profiles import profiled
from moopt.backend.kv.profiling import Profile
from moopt.backend.kv.shape import shape_of
from moopt.backend.kv.workbench import KVWorkbench
from moopt.backend.latency import where
from moopt.backend.text import Text
from moopt.errors import ProblemError
from moopt.never_worse import VALIDATION
from moopt.problem import Evaluation, Fidelity, Objective, Resources
from moopt.space import Config, Ordinal, Space
from moopt_problems import checks
from moopt_problems.benched import Benched
from moopt_problems.objectives import LANGUAGE, MEASURED

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
METHODS = ("fisher", "output-error", "one-layer")


class KVCachePrecision(Benched[KVWorkbench]):
    """Pairs of widths for the keys and values of a model's layers; its weights stay as they are.

    Args:
        model: "smollm2-135m", a local folder or a Hugging Face id: a causal language model.
        bits: What keys and values choose from, among 2, 4, 8 and 16; groups of your own say it themselves.
        objectives: Among kl, perplexity, top1_agreement, decode_ms, kv_bytes, kv_bits and kv_bits_effective. kv_bytes
            are those of the cache at `context` tokens and `batch` sequences of a model in 16 bits; kv_bits do not count
            scales and tokens that are not packed, kv_bits_effective do. decode_ms is predicted from uniform caches
            during the search, and measured for the finalists.
        scheme: "kivi", "per-token", or a `moopt.backend.kv.Scheme`.
        groups: What is decided. "layers": keys and values of every layer. "pruned": for every layer one of the pairs
            that a profile leaves. "kvtuner": the same for layers together that are alike (Li et al. 2025,
            arXiv:2502.04420). Or pairs by layers, such as {"0": ["KV8", "KV4"], "1-29": ["KV4", "K4V2"]}, or what
            `moopt.backend.kv.cluster` gave.
        error: By which error of a profile pairs are left and layers are alike: see `moopt.backend.kv.Profile`.
        eps: How much neighbours in a group may differ: see `moopt.backend.kv.cluster`.
        profile_tokens: Tokens that a profile and the sensitivities run.
        metrics: Objectives of your own, such as the accuracy in a task: see `moopt.backend.metrics`. While they are
            measured, calls of the model and `model.generate` pack keys and values.
        text: What to evaluate on: "mix", "prose", "docstrings", "code", or a path.
        tokens: Tokens of an evaluation.
        context: Tokens of a sequence, all of them a prompt that attends to packed keys and values.
        batch: Sequences that kv_bytes are for.
        held_out: Tokens of the measurement on held-out text at the end; 0 for none.
        validation: Tokens of the text by which points of the front compete with baselines before that; 0 for none.
        sensitivities: "fisher" and "output-error" (from the profile: the expected KL divergence of each option alone,
            or the squared relative error of attention's output), "one-layer" (that KL divergence, measured) or None.

    Raises:
        ModelNotFound, QuantizationError, TextError, BackendError, ProblemError: say what does not fit.
    """

    def __init__(
        self,
        model: str,
        bits: Sequence[int] = (2, 4, 8),
        objectives: Sequence[str] = ("kl", "kv_bytes"),
        scheme: str | Scheme = "kivi",
        groups: str | Mapping[str, Sequence[Any]] | Sequence[grouping.Group] = "kvtuner",
        error: str = "fisher",
        eps: float = 0.2,
        profile_tokens: int = 4096,
        metrics: Sequence[user.Metric] = (),
        text: str = "mix",
        tokens: int = 4096,
        context: int = 2048,
        batch: int = 1,
        held_out: int = 8192,
        validation: int = 2048,
        sensitivities: str | None = "fisher",
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        checks.whole(1, tokens=tokens, context=context, batch=batch, profile_tokens=profile_tokens)
        checks.whole(0, held_out=held_out, validation=validation)
        self.model, self.scheme, self.batch, self.context = model, scheme_of(scheme), batch, context
        self.profile_tokens, self.text = profile_tokens, Text(text)
        self.is_profiled = groups in ("pruned", "kvtuner")
        counts = {"tokens": tokens, "held_out": held_out, "validation": validation}
        if self.is_profiled or sensitivities is not None:
            counts["profile_tokens"] = profile_tokens
        for name, count in counts.items():
            if 0 < count < context:
                raise ProblemError(f"Got {name}={count} for a context of {context}; expected at least one sequence.")
        if not self.scheme.packed(context):
            raise ProblemError(f"{self.scheme} packs none of {context} tokens; expected a context that is longer.")
        self._config = models.load_config(model)
        if not models.generates(self._config):
            raise ProblemError(f"{model} generates no text, so it caches no keys and values.")
        self.shape = shape_of(self._config)
        if not self.shape.packable:
            raise ProblemError(f"{model} has no layer whose cache can be packed: all of them look at a window only.")
        self.bits = _widths(bits)
        self.decided = self._decided(groups, error, eps)
        self.metrics = tuple(metrics)
        if commands := [metric.name for metric in self.metrics if isinstance(metric, user.CommandMetric)]:
            raise ProblemError(
                f"The metric {commands[0]!r} is a command, which gets a folder of weights and nothing of the cache; "
                "expected functions of the model."
            )
        self.objectives = self._objectives(objectives)
        self.space = Space({decision.name: Ordinal(*decision.options) for decision in self.decided})
        self.fidelity = Fidelity(tokens, 0)
        rungs = {max(tokens // part // context, 1) * context for part in (16, 4)}
        self.rungs = sorted(rung for rung in rungs if rung < tokens)
        splits = ((VALIDATION, validation), ("held-out", held_out))
        self.measurements = {split: Fidelity(count, split) for split, count in splits if count}
        if self.is_timed:
            self.measurements["latency"] = Fidelity(0, "latency")
        if sensitivities is not None:
            _check_method(sensitivities)
            self.sensitivity = Fidelity(profile_tokens, sensitivities)

    exclusive = ("latency",)

    @property
    def is_timed(self) -> bool:
        """Whether decode_ms is an objective."""
        return any(o.name == "decode_ms" for o in self.objectives)

    def _opened(self, resources: Resources) -> KVWorkbench:
        return KVWorkbench(self, resources)

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        return self._ready.evaluate(config, fidelity)

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """What each option of each decision might do to the loss by itself, [decisions, options].

        Args:
            method: "fisher", "output-error" or "one-layer".
            tokens: Tokens of text to use.
        """
        _check_method(method)
        return self._ready.sensitivities(method, tokens)

    def forward_tokens(self, kind: str, fidelity: Fidelity) -> int:
        if kind == "sensitivity" and fidelity.batch == "one-layer":
            return fidelity.tokens * (1 + sum(len(decision.options) for decision in self.decided))
        if kind == "sensitivity":  # a profile's backward pass
            return 3 * fidelity.tokens
        return fidelity.tokens

    def costs(self) -> IntArray:
        """Bytes of each decision at each option, [decisions, options]; -1 where there is none."""
        return self._costs

    def known(self, config: Config) -> dict[str, float]:
        every = self.pairs(config)
        pairs = [every[layer] for layer in self.shape.packable]
        exact = {
            "kv_bytes": float(self.bytes(config)),
            "kv_bits": float(np.mean([pair.bits for pair in pairs])),
            "kv_bits_effective": self.scheme.effective_bits(pairs, self.context, self.shape.size),
        }
        return {o.name: exact[o.name] for o in self.objectives if o.known}

    def bytes(self, config: Config) -> int:
        """What the cache takes at `context` tokens and `batch` sequences, layers that keep a window only included."""
        chosen = zip(self.decided, self._costs, strict=True)
        return self.shape.window_bytes(self.context, self.batch) + sum(
            int(row[decision.options.index(config[decision.name])]) for decision, row in chosen
        )

    def pairs(self, config: Config) -> list[Pair]:
        """The pair of every layer; 16 bits for layers whose cache cannot be packed."""
        return self._given({decision: config[decision.name] for decision in self.decided})

    def apply(self, candidate: Shipped, config: Config) -> Shipped:
        """A candidate with the pairs of a configuration: see `Joint`."""
        return replace(candidate, pairs=tuple(self.pairs(config)), scheme=self.scheme)

    def options(self) -> list[list[list[Pair]]]:
        """The pairs of the layers that each option of each decision gives by itself, with 16 bits for all the rest."""
        return [[self._given({decision: option}) for option in decision.options] for decision in self.decided]

    def _given(self, chosen: Mapping[Decision, Any]) -> list[Pair]:
        """The pairs of the layers that decisions give, and 16 bits for all the rest."""
        found = [{"k": 16, "v": 16} for _ in self.shape.windows]
        for decision, option in chosen.items():
            widths = decision.widths(option)
            for layer in decision.group.layers:
                found[layer] |= widths
        return [Pair(**each) for each in found]

    @property
    def profiled_pairs(self) -> list[Pair]:
        """What a profile has: every pair of the widths, and each of them beside 16 bits."""
        return [Pair(*each) for each in itertools.product(sorted({*self.bits, 16}), repeat=2)]

    def profile(self) -> Profile:
        """What each pair does to each layer by itself, on `profile_tokens`; made once, and kept in the cache."""
        every = profiled(self.model, self.profiled_pairs, self.scheme, self.text, self.profile_tokens, self.context)
        return every.only(self._pairs)

    def baselines(self) -> dict[str, Config]:
        named = {}
        for pair in sorted(self._pairs, key=lambda pair: (-pair.bits, pair)):
            config = {decision.name: decision.option(pair) for decision in self.decided}
            if all(config[decision.name] in decision.options for decision in self.decided):
                named[f"uniform-{pair}"] = config
        if len(named) < 2:
            named["largest"] = {decision.name: decision.options[-1] for decision in self.decided}
            named["smallest"] = {decision.name: decision.options[0] for decision in self.decided}
        return named

    def decisions(self) -> list[dict[str, Any]]:
        return [
            {"name": d.name, "row": d.group.name, "column": d.part or "pair", "label": f"layers {d.group.name}"}
            for d in self.decided
        ]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        apart = {"metrics", "text", "scheme", "groups"}
        plain = {k: v for k, v in self._arguments.items() if k not in apart}
        return {
            "identity": {
                "problem": type(self).__qualname__,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()},
                "scheme": str(self.scheme),
                "groups": {decision.name: list(map(str, decision.options)) for decision in self.decided},
                "weights": models.identity(self.model),
                "text": self.text.identity,
                "metrics": [m.describe() for m in self.metrics],
            },
            "environment": {"torch": torch.__version__, "cores": os.cpu_count()},
        }

    def save(self, config: Config, path: str | os.PathLike[str]) -> Path:
        """Write a candidate as a preset, which `moopt.packed_cache` takes: the pairs of layers and their scheme."""
        return Preset(tuple(self.pairs(self.space.validate(config))), self.scheme).save(path)

    @property
    def _pairs(self) -> list[Pair]:
        return [Pair(*each) for each in itertools.product(self.bits, repeat=2)]

    def _decided(self, groups: Any, error: str, eps: float) -> tuple[Decision, ...]:
        """What is decided: keys and values of layers, or pairs of groups."""
        layers = self.shape.packable
        if groups == "layers":
            each = [grouping.Group((layer,), tuple(self._pairs)) for layer in layers]
            return tuple(Decision(group, part, self.bits) for group in each for part in ("k", "v"))
        if self.is_profiled:
            made = self.profile()
            how: grouping.Clusters = "dbscan" if groups == "kvtuner" else "none"
            found = grouping.cluster(made, grouping.prune(made, error), eps, error, how, layers)
        elif isinstance(groups, str):
            raise ProblemError(f"Got groups={groups!r}; expected 'kvtuner', 'pruned', 'layers' or pairs by layers.")
        else:
            found = grouping.of_mapping(groups)
            self.bits = tuple(sorted({bits for group in found for pair in group.pairs for bits in (pair.k, pair.v)}))
        grouping.check(found, layers)
        return tuple(Decision(group, "", tuple(map(str, group.pairs))) for group in found)

    @cached_property
    def _costs(self) -> IntArray:
        table = np.full((len(self.decided), max(len(d.options) for d in self.decided)), -1, dtype=np.int64)
        for row, decision in enumerate(self.decided):
            for column, option in enumerate(decision.options):
                each = sum(
                    self.scheme.half_bytes(part, bits, self.context, self.shape.size)
                    for part, bits in decision.widths(option).items()
                )
                table[row, column] = each * len(decision.group.layers) * self.shape.heads * self.batch
        return table

    def _objectives(self, names: Sequence[str]) -> list[Objective]:
        own = Objective("kv_bytes", unit=f"bytes; {self.context} tokens x {self.batch}", known=True)
        bits = [Objective(name, unit="bits/number", known=True) for name in ("kv_bits", "kv_bits_effective")]
        timed = Objective("decode_ms", unit=f"ms; {where(choose_device('auto'), self.context)}")
        known = {o.name: o for o in (*(MEASURED[n] for n in LANGUAGE), own, *bits, timed)}
        if not isinstance(names, (list, tuple)) or not names or any(name not in known for name in names):
            raise ProblemError(f"Got objectives={names!r}; expected some of {', '.join(known)}, in a list.")
        if taken := [metric.name for metric in self.metrics if metric.name in known]:
            raise ProblemError(f"A metric has the name {taken[0]!r}, which is moopt's own; give it another.")
        searched = [Objective(m.name, m.direction, m.unit) for m in self.metrics if m.when == "every"]
        return [*(known[name] for name in names), *searched]


@dataclass(frozen=True)
class Decision:
    """One variable: the pair of a group, or its layer's keys ("k") or values ("v").

    Attributes:
        group: The layers.
        part: "k", "v", or "" for both.
        options: Widths, or pairs by name.
    """

    group: grouping.Group
    part: str
    options: tuple[Any, ...]

    @property
    def name(self) -> str:
        """What the variable is called."""
        return f"{self.group.name}.{self.part}" if self.part else self.group.name

    def option(self, pair: Pair) -> Any:
        """What it is set to where its layers are to have a pair."""
        return {"k": pair.k, "v": pair.v}.get(self.part, str(pair))

    def widths(self, option: Any) -> dict[str, int]:
        """The bits of keys and of values, as far as it decides them."""
        if self.part:
            return {self.part: option}
        pair = Pair.of(option)
        return {"k": pair.k, "v": pair.v}


def _widths(bits: Any) -> tuple[int, ...]:
    """The widths that keys and values choose from, fewest bits first."""
    good = isinstance(bits, (list, tuple)) and bits and all(type(b) is int and b in WIDTHS for b in bits)
    if not good or len(set(bits)) < len(bits):
        raise ProblemError(f"Got bits={bits!r}; expected some of {WIDTHS}, each once, in a list.")
    return tuple(sorted(bits))


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ProblemError(f"Got the sensitivities {method!r}; expected one of {', '.join(METHODS)}.")
