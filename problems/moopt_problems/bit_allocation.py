"""How many bits each layer of a model gets: the Pareto front of its size and of what quantization does to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moopt.backend import footprint, models, packed, proxies, quantizers, targets, weights
from moopt.backend import metrics as user
from moopt.backend.candidate import choose_device
from moopt.backend.exporters.shipment import Shipment
from moopt.backend.joint import Shipped
from moopt.backend.options import Option, Options, stored_bits
from moopt.backend.plan import Plan, make_plan
from moopt.backend.quantizers import Quantizer
from moopt.backend.simulated import packable
from moopt.backend.text import Text
from moopt.backend.workbench import Workbench, request
from moopt.errors import ProblemError
from moopt.exporting import Compared
from moopt.never_worse import VALIDATION
from moopt.problem import Evaluation, Fidelity, Resources
from moopt.space import Config, Ordinal, Space
from moopt_problems import checks, data, options, storage
from moopt_problems import objectives as measured
from moopt_problems.benched import Benched
from moopt_problems.storage import TABLES, Asked, Storage

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class BitAllocation(Benched[Workbench]):
    """Bit widths for the linear layers of a model, and for its embedding and head if asked.

    Args:
        model: "smollm2-135m", "minilm-l6", a local folder or a Hugging Face id.
        bits: What to choose from: widths among 2, 3, 4, 5, 6 and 8, and formats that are simulated, "fp4", "nf4",
            "fp8-e5m2", "fp8-e4m3" (see `moopt.backend.formats`). A decision's options are in the order of their bytes.
            None: all widths, or what the target loads.
        objectives: Among kl, perplexity, top1_agreement, decode_ms, prefill_ms (language models), cosine_distance,
            relative_error (encoders), size_mb, bits. None: the loss that fits the model, and size_mb. The times are
            predicted from single layers during the search, and measured on whole models for the finalists.
        group_size: How many inputs share a scale; 64 if nothing is said.
        quantizer: "rtn", "rtn-symmetric", "hqq", "gptq", "matgptq", "eora", "bcq", a plug-in's name, or one with
            settings of its own, such as `moopt.backend.quantizers.EoRA(ranks=(0, 8, 32))`, which offers ranks, too.
            None: "rtn", or its symmetric kind where the target loads no other.
        tie: "fused" ties what servers store as one (q,k,v; gate,up), "experts" also all experts of a block, "linear"
            nothing, "block" whole blocks.
        embedding: The embedding's width or format; several make it a decision; 16 leaves it alone. None: 8 bits, or
            what the target loads.
        head: The same for an output head of its own; None follows the embedding.
        skip: Patterns of layers that stay at 16 bits, such as "model.layers.0.*".
        metrics: Objectives of your own: see `moopt.backend.metrics`.
        text: What to evaluate on: "mix", "prose", "docstrings", "code", or a path.
        tokens: Tokens of an evaluation.
        context: Tokens of a sequence.
        held_out: Tokens of the measurement on held-out text at the end; 0 for none.
        validation: Tokens of the text by which points of the front compete with baselines before that; 0 for none.
        sensitivities: A proxy's name (see `moopt.backend.proxies`) or None, for the knapsack every study opens with.
        sensitivity_tokens: Tokens it may use.
        draw: Which draw of text, and of sampled labels, the Fisher sensitivities use.
        calibration_tokens: Tokens of the search text that a calibrated quantizer looks at, once.
        external: Files of models that another tool quantized, by the names that options of theirs get; each is one for
            every layer that has it (see `moopt.backend.external`). Simulated, too.
        stream: Whether one block of the model is held at a time, read from its safetensors; "auto": if it does not fit.
        formats: The file that sizes are of: "moopt", or "gguf", whose types are the options then (see
            `moopt.backend.gguf.types`): what is searched is what llama.cpp gets.
        target: The server that is to run it: "moopt", "transformers", "vllm" or "llama.cpp". What it does not load is
            refused (see `moopt.backend.targets`).

    Raises:
        ModelNotFound, QuantizationError, TextError, ProblemError: say what does not fit.
    """

    def __init__(
        self,
        model: str,
        bits: Sequence[Option] | None = None,
        objectives: Sequence[str] | None = None,
        group_size: int = 64,
        quantizer: str | Quantizer | None = None,
        tie: str = "fused",
        embedding: Option | Sequence[Option] | None = None,
        head: Option | Sequence[Option] | None = None,
        skip: Sequence[str] = (),
        metrics: Sequence[user.Metric] = (),
        text: str = "mix",
        tokens: int = 6144,
        context: int = 512,
        held_out: int = 6144,
        sensitivities: str | None = "default",
        sensitivity_tokens: int = 6144,
        draw: int = 0,
        calibration_tokens: int = 32_768,
        external: Mapping[str, str] | None = None,
        stream: footprint.Stream = "auto",
        validation: int = 3072,
        formats: str | None = None,
        target: str | None = None,
    ) -> None:
        server = targets.named(target) if target is not None else None
        bits, quantizer, embedding, formats = storage.said(bits, quantizer, embedding, formats, server)
        self._arguments = {k: v for k, v in locals().items() if k not in {"self", "__class__", "server"}}
        self.model, self.group_size = model, group_size
        self.quantizer = quantizers.named(quantizer)
        self.text, self.context = Text(text), context
        self._config = models.load_config(model)
        self.is_language = models.generates(self._config)
        self.inventory = weights.inventory(models.outline(self._config))
        self.external = options.opened(external, self._config, self.inventory)
        self.formats, self.server = formats, server
        self._storage = Storage(
            Asked(
                model, self._config, self.inventory, bits, group_size, self.quantizer, tie, embedding,
                embedding if head is None else head, tuple(skip), formats, self.external, server,
            )
        )  # fmt: skip
        self.decided, self.fixed = self._storage.decided, self._storage.fixed
        self.layout, self.simulated = self._storage.layout, self._storage.simulated
        self._metrics = tuple(metrics)
        untimed = "a mixture of experts, which runs some of its layers" if self.inventory.is_mixture else ""
        if simulated := [*map(str, self.simulated), *([self.quantizer.name] if self.quantizer.simulated else [])]:
            untimed = f"{', '.join(simulated)}, which no kernel runs"
        self.objectives = measured.chosen(objectives, model, self.is_language, context, self._metrics, untimed)
        self.stream = footprint.check(stream, self)
        self.space = Space({name: Ordinal(*decision.options) for name, decision in self.decided.items()})
        checks.whole(1, tokens=tokens, context=context, sensitivity_tokens=sensitivity_tokens)
        checks.whole(1, calibration_tokens=calibration_tokens)
        checks.whole(0, draw=draw, held_out=held_out, validation=validation)
        self.calibration_tokens = calibration_tokens if self.quantizer.calibrated else 0
        self.draw, self.fidelity = draw, Fidelity(tokens, 0)
        rungs = {max(tokens // part // context, 1) * context for part in (16, 4)}
        self.rungs = sorted(rung for rung in rungs if rung < tokens)
        splits = ((VALIDATION, validation), ("held-out", held_out))
        self.measurements = {split: Fidelity(count, split) for split, count in splits if count}
        if self.is_timed:
            self.measurements["latency"] = Fidelity(0, "latency")
        usual = "fisher-columns" if self.is_language else "one-layer"
        chosen = usual if sensitivities == "default" else sensitivities
        if chosen is not None:
            proxies.check(chosen, request(self, sensitivity_tokens), self.is_language, self.stream is True)
            self.sensitivity = Fidelity(sensitivity_tokens if proxies.named(chosen).usual else 0, chosen)
        if not self.is_language:  # no vocabulary, no KL, no gradient: algorithms that need one are refused
            self.gradient = None  # type: ignore[assignment, method-assign]

    exclusive = ("latency",)
    gradient_tokens = 512
    proxy_bench = data.SMOLLM2
    """Measured allocations that `moopt proxies` ranks by."""

    @property
    def is_timed(self) -> bool:
        """Whether latency is an objective."""
        return any(o.name in measured.TIMED for o in self.objectives)

    def _opened(self, resources: Resources) -> Workbench:
        return Workbench(self, resources, footprint.streams(self, choose_device(resources.device)))

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        return self._ready.evaluate(config, fidelity)

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """What each single width might do to the loss, [decisions, options].

        Args:
            method: The name of a proxy, such as "fisher-columns": see `moopt.backend.proxies`.
            tokens: Tokens of text to use.
        """
        proxies.check(method, request(self, tokens), self.is_language, self.stream is True)
        return self._ready.sensitivities(method, tokens)

    def gradient(self, config: Config, fidelity: Fidelity) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """KL at a candidate, and what each single change would add to it: linear and curvature, nats per token."""
        return self._ready.gradient(config, fidelity)

    def forward_tokens(self, kind: str, fidelity: Fidelity) -> int:
        if kind == "gradient":  # the original, the candidate, its backward pass, and half a one for the curvature
            return 5 * fidelity.tokens
        if kind == "sensitivity":
            return proxies.cost(str(fidelity.batch), request(self, fidelity.tokens))
        return fidelity.tokens

    def costs(self) -> IntArray:
        """Bytes of each decision at each width, [decisions, options]."""
        return self._storage.costs

    def known(self, config: Config) -> dict[str, float]:
        exact = {"size_mb": self.bytes(config) / 1e6, "bits": self.bits(config)}
        return {o.name: exact[o.name] for o in self.objectives if o.known}

    def bytes(self, config: Config) -> int:
        """The bytes of the exported file: codes, scales, zero points, embedding and header counted."""
        return self._storage.fixed_bytes + sum(
            int(row[decision.options.index(config[name])])
            for (name, decision), row in zip(self.decided.items(), self.costs(), strict=True)
        )

    def bits(self, config: Config) -> float:
        """Bits per quantized weight, repairs counted and scales left out."""
        how, chosen = self.simulated, [(w, config[name]) for name, d in self.decided.items() for w in d.weights]
        total = sum(w.count * how[o].bits(w) if o in how else stored_bits(o, w) for w, o in chosen)
        return total / sum(w.count for w, _ in chosen)

    def widths(self, config: Config) -> dict[str, Option]:
        """The option of every decided matrix, by its name: see `moopt.backend.options`."""
        return {w.name: config[name] for name, d in self.decided.items() for w in d.weights}

    def options(self, config: Config) -> dict[str, Option]:
        """The option of every quantized matrix, by its name."""
        return {**self.fixed, **self.widths(self.space.validate(config))}

    def apply(self, candidate: Shipped, config: Config) -> Shipped:
        """A candidate with the options of a configuration: see `Joint`."""
        return replace(candidate, widths={**self.fixed, **self.widths(config)})

    def baselines(self) -> dict[str, Config]:
        layers = [d.options for n, d in self.decided.items() if n not in TABLES]
        return {
            f"uniform-{b}": {name: (d.options[-1] if name in TABLES else b) for name, d in self.decided.items()}
            for b in layers[0]
            if all(b in offered for offered in layers)
        }

    def moves(self, config: Config, rng: np.random.Generator) -> Config:
        """A level switch: some decisions one option up, others of the same size one down (EvoPress)."""
        changed = dict(config)
        for _ in range(int(min(rng.integers(1, 4), rng.integers(1, 4)))):
            up = [n for n in self.decided if config[n] != self.decided[n].options[-1] and changed[n] == config[n]]
            if not up:
                break
            rising = up[int(rng.integers(len(up)))]
            count = self.decided[rising].count
            down = [
                n
                for n, d in self.decided.items()
                if n != rising and d.count == count and config[n] != d.options[0] and changed[n] == config[n]
            ]
            if not down:
                continue
            falling = down[int(rng.integers(len(down)))]
            changed[rising] = self.space[rising].neighbours(config[rising])[-1]
            changed[falling] = self.space[falling].neighbours(config[falling])[0]
        return changed

    def decisions(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "row": str(decision.weights[0].block) if decision.weights[0].block is not None else name,
                "column": name.split(".", 1)[-1].replace("_", ",") if decision.weights[0].block is not None else name,
                "label": ", ".join(w.name for w in decision.weights),
            }
            for name, decision in self.decided.items()
        ]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        apart = {"metrics", "text", "quantizer", "calibration_tokens", "external", "stream"}
        plain = {k: v for k, v in self._arguments.items() if k not in apart}
        settings = self.quantizer.settings()
        if self.quantizer.calibrated:
            settings |= {"calibration_tokens": self.calibration_tokens}
        return {
            "identity": {
                "problem": type(self).__qualname__,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()},
                "quantizer": self.quantizer.name,
                **({"quantizer_settings": settings} if settings else {}),
                **({"external": {n: file.digest for n, file in self.external.items()}} if self.external else {}),
                "weights": models.identity(self.model),
                "text": self.text.identity,
                "metrics": [m.describe() for m in self._metrics],
            },
            "environment": {"torch": torch.__version__, "cores": os.cpu_count()},
        }

    def save(self, config: Config, path: str | os.PathLike[str]) -> Path:
        """Write a candidate as moopt's packed file, for `moopt.load`: of exactly `bytes(config)` bytes.

        The tokenizer's own files are written beside it.

        Raises:
            QuantizationError: a matrix is simulated; the file has no place for it.
        """
        return self._save(Path(path), self._all_widths(config), None)

    def shipment(self, config: Config) -> Shipment:
        """A candidate as exporters get it: see `moopt.exporting`."""
        evaluator = self._ready.evaluator
        candidate, how = evaluator.candidate, (self.text.source, self.context, self.held_out_tokens)
        compared = Compared(self.model, *how) if self.is_language else None
        return Shipment(
            self.model, self.layout, self.options(config), self.simulated, candidate.variants.quantized,
            candidate.stored, candidate.parameters(), evaluator.tokenizer, (self.model,), compared, self.bytes(config),
        )  # fmt: skip

    def raised(self, config: Config, holds: Callable[[Option], bool], fused: bool) -> Config:
        """A candidate each option of which holds: the same where it does, else the next larger one that does.

        Args:
            config: The candidate.
            holds: Whether an option does.
            fused: Whether layers that servers run as one get the largest option of theirs.

        Raises:
            ProblemError: a decision has none; names it.
        """
        found = self._one_by_one(self.space.validate(config), holds)
        for members in self._storage.fused if fused else ():
            deciding = [name for name, d in self.decided.items() if set(d.weights) & set(members)]
            largest = max((found[name] for name in deciding), key=self.decided[deciding[0]].options.index)
            found |= dict.fromkeys(deciding, largest)
        return found

    def _one_by_one(self, found: dict[str, Any], holds: Callable[[Option], bool]) -> dict[str, Any]:
        for name, decision in self.decided.items():
            larger = decision.options[decision.options.index(found[name]) :]
            fitting = [option for option in larger if holds(option)]
            if not fitting:
                raise ProblemError(
                    f"{name} has {found[name]} and could have {', '.join(map(str, decision.options))}: none of these "
                    "that is as large can be exported so. Search with target= and the server's name."
                )
            found[name] = fitting[0]
        return found

    def save_slices(self, configs: Mapping[str, Config], path: str | os.PathLike[str]) -> Path:
        """Write an 8-bit Matryoshka parent with a slice map for each candidate: `moopt.load(path, slices="name")`.

        Every matrix is stored once, at 8 bits; a candidate reads the upper bits of its codes. With "matgptq" that is
        the candidate that was measured. Other quantizers do not round so at lower widths: there a slice is a model of
        its own, to be measured again; at 8 bits they agree.

        Args:
            configs: Candidates by the names their slice maps get.
            path: The file; the tokenizer's own files are written beside it.
        """
        if not configs:
            raise ProblemError("Got no candidates; expected at least one, by the name its slice map gets.")
        slices = {name: self._all_widths(config) for name, config in configs.items()}
        return self._save(Path(path), {name: 8 for name in self._all_widths(next(iter(configs.values())))}, slices)

    def plan(
        self, trials: int, extra: Mapping[str, tuple[int, int]] | None = None, resources: Resources | None = None
    ) -> Plan:
        """Memory, disk and minutes that a study of so many trials will need, measured here in seconds.

        Args:
            trials: Trials in total.
            extra: What else the algorithm will do: see `Algorithm.extra_jobs`.
            resources: The device and the threads.
        """
        return make_plan(self, trials, extra, resources)

    def _all_widths(self, config: Config) -> dict[str, Option]:
        return packable(self.options(config), self.simulated)

    def _save(self, path: Path, widths: Options, slices: packed.Slices | None) -> Path:
        evaluator = self._ready.evaluator
        candidate = evaluator.candidate
        packed.write(path, self.layout, widths, candidate.variants.quantized, candidate.parameters(), slices)
        evaluator.tokenizer.save_pretrained(path.parent)
        return path

    @property
    def finalist_metrics(self) -> tuple[user.Metric, ...]:
        """The user's metrics that only the front is measured by."""
        return tuple(m for m in self._metrics if m.when == "finalists")

    @property
    def search_metrics(self) -> tuple[user.Metric, ...]:
        """The user's metrics that every candidate is measured by."""
        return tuple(m for m in self._metrics if m.when == "every")
