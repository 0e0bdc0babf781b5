"""A loaded model that any candidate can be measured on: ties candidate, text and measures together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moopt.backend import blocks, language, memory, models, weights
from moopt.backend.calibration import Calibration
from moopt.backend.candidate import Candidate, choose_device, choose_type
from moopt.backend.language import Head
from moopt.backend.options import Option, Options
from moopt.backend.quantizers import Quantizer
from moopt.backend.simulated import Simulated
from moopt.backend.streaming import Streamed
from moopt.backend.text import Text, Tokens
from moopt.backend.variant_store import VariantStore
from moopt.errors import BackendError
from moopt.problem import Fidelity, Resources

DRAWS = 4
"""How many draws of text the original's outputs are kept for."""


@dataclass(frozen=True)
class Measured:
    """What one evaluation found.

    Attributes:
        values: The figures by name.
        samples: The same figures for every sequence, [s].
        tokens: Forward tokens it took, those of the original included where it had to run.
    """

    values: dict[str, float]
    samples: dict[str, Tensor]
    tokens: int

    def statistics(self, names: Collection[str]) -> tuple[dict[str, list[float]], dict[str, float]]:
        """What sequences have of some figures, as far as they have, and the variances of those figures' means."""
        samples = {n: [round(float(v), 6) for v in s] for n, s in self.samples.items() if n in names}
        return samples, {n: float(np.var(s, ddof=1)) / len(s) for n, s in samples.items() if len(s) > 1}


class Evaluator(ABC):
    """Loads a model once, becomes any candidate of it and measures that.

    Args:
        model: An embedded name, a folder or a Hugging Face id.
        quantizer: Makes the variants.
        group_size: How many inputs share a scale.
        text: What to evaluate on.
        length: Tokens of a sequence.
        fixed: Widths of matrices that no decision changes.
        resources: The device and the threads.
        calibration_tokens: Tokens of the search split that a calibrated quantizer looks at.
        simulated: Options besides widths, by name.
        stream: Whether to hold one block of the model at a time.
    """

    def __init__(
        self, model: str, quantizer: Quantizer, group_size: int, text: Text, length: int, fixed: Options,
        resources: Resources, calibration_tokens: int, simulated: Mapping[Option, Simulated], stream: bool = False,
    ) -> None:  # fmt: skip
        if resources.threads is not None:
            torch.set_num_threads(resources.threads)
        device = choose_device(resources.device)
        matrices = weights.inventory(models.outline(models.load_config(model))).weights
        self._version = models.version(model)
        dtype = self.compute_type(device)
        streamed = Streamed(model, device, dtype) if stream else None
        self.candidate = Candidate(
            models.load_model(model) if streamed is None else streamed.model, matrices, quantizer, group_size, device,
            dtype, None if stream else partial(models.load_model, model), VariantStore(self._version), simulated,
            streamed,
        )  # fmt: skip
        memory.give_back()  # the originals run from the store
        self.tokenizer = models.load_tokenizer(model)
        self.tokens: Tokens = text.tokenized(self.tokenizer)
        self.length, self._fixed = length, dict(fixed)
        if quantizer.calibrated:
            ids = self.tokens.draws("search", calibration_tokens, min(length, calibration_tokens), seed=0).to(device)
            self.candidate.calibrate(self.calibration(ids))

    def compute_type(self, device: torch.device) -> torch.dtype:
        """What the model computes in on a device."""
        return choose_type(device)

    def use(self, widths: Options) -> None:
        """Become the candidate with these options of the decided matrices."""
        self.candidate.use({**self._fixed, **widths})

    def calibration(self, ids: Tensor) -> Calibration:
        """What the original's linear layers read on sequences [s, t]; ask it while the candidate is the original."""
        linears = [w.name for w in self.candidate.weights if w.kind == "linear"]
        return Calibration(self.candidate.model, linears, ids, self._version, self.candidate.resident)

    @abstractmethod
    def measure(self, widths: Options, fidelity: Fidelity) -> Measured:
        """Become a candidate and compare it with the original on a batch of text."""

    def ids(self, fidelity: Fidelity) -> Tensor:
        """The sequences [s, t] of a fidelity: the beginning of a split, for a number above 0 a draw of search text."""
        if isinstance(fidelity.batch, int) and fidelity.batch:
            drawn = self.tokens.draws("search", fidelity.tokens, self.length, seed=fidelity.batch)
            return drawn.to(self.candidate.device)
        split = fidelity.batch or "search"
        return self.tokens.batch(split, 0, fidelity.tokens, self.length).to(self.candidate.device)


class LanguageEvaluator(Evaluator):
    """A causal language model, measured by KL divergence, perplexity and top-1 agreement."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads: dict[Option | None, Head] = {}
        self._references: dict[tuple[Fidelity, Option | None], language.Reference] = {}
        model = self.candidate.model
        self._run: language.Run = language.hidden_states
        if self.candidate.streams:
            self._run = partial(blocks.hidden_states, resident=self.candidate.resident)
        self._original = language.head_of(model)
        if self._original.softcap is not None:
            raise BackendError(
                f"{type(model).__name__} caps its logits, which the KL measure does not support yet; "
                "set final_logit_softcapping to null in its config.json if you can do without."
            )
        tables = {w.kind: w.name for w in self.candidate.weights if w.kind != "linear"}
        self._head_name = tables.get("head", tables.get("embedding"))
        if self._head_name is not None:
            self._original = self._head(self._head_name, None, self._original)

    def head(self) -> Head:
        """The head of the candidate as it is set now."""
        assert self._head_name is not None
        width, original = self.candidate.current.get(self._head_name), self._original
        if width not in self._heads:
            self._heads = {width: self._head(self._head_name, width, original)}
        return self._heads[width]

    def _head(self, name: str, bits: Option | None, like: Head) -> Head:
        widened = self.candidate.widened(name, bits) if self.candidate.device.type == "cpu" else None
        return replace(like, weight=self.candidate.weight(name, bits), widened=widened)

    def reference(self, fidelity: Fidelity, ids: Tensor) -> tuple[language.Reference, int]:
        """The original on sequences, for candidates with the present head; and the forward tokens that took."""
        assert self._head_name is not None
        key = (fidelity, self.candidate.current.get(self._head_name))
        if key in self._references:
            return self._references[key], 0
        self._references[key] = self.observed(ids)
        _forget(self._references)
        return self._references[key], ids.numel()

    def observed(self, ids: Tensor) -> language.Reference:
        """The original on sequences that will not come again, for candidates with the present head."""
        head, widths = self.head(), dict(self.candidate.current)
        self.candidate.use({})
        try:
            return language.observe(self.candidate.model, ids, self._original, head, self._run)
        finally:
            self.candidate.use(widths)

    def measure(self, widths: Options, fidelity: Fidelity, run: language.Run | None = None) -> Measured:
        """As for every evaluator; `run` takes the candidate through a text in another way than the original."""
        self.use(widths)
        ids = self.ids(fidelity)
        reference, extra = self.reference(fidelity, ids)
        found = language.compare(self.candidate.model, reference, self.head(), run or self._run)
        return Measured(found.means(), found.sequences(), ids.numel() + extra)


class EncoderEvaluator(Evaluator):
    """A model without a vocabulary, measured by how far its outputs move: mean-pooled last hidden states."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._references: dict[tuple[Fidelity, None], Tensor] = {}

    def compute_type(self, device: torch.device) -> torch.dtype:
        return torch.float32

    def measure(self, widths: Options, fidelity: Fidelity) -> Measured:
        ids, key, extra = self.ids(fidelity), (fidelity, None), 0
        if key not in self._references:
            self.candidate.use({})
            self._references[key] = self._outputs(ids)
            _forget(self._references)
            extra = ids.numel()
        self.use(widths)
        outputs, originals = self._outputs(ids), self._references[key]
        samples = {
            "cosine_distance": 1 - torch.nn.functional.cosine_similarity(outputs, originals, dim=-1),
            "relative_error": (outputs - originals).norm(dim=-1) / originals.norm(dim=-1),
        }
        return Measured({n: float(v.double().mean()) for n, v in samples.items()}, samples, ids.numel() + extra)

    @torch.inference_mode()
    def _outputs(self, ids: Tensor) -> Tensor:
        """Sentence vectors [s, k]."""
        parts = ids.split(max(1, language.TOKENS_AT_ONCE // ids.shape[1]))
        return torch.cat([self.candidate.model(input_ids=p).last_hidden_state.float().mean(1) for p in parts])


def _forget(references: MutableMapping[tuple[Fidelity, Any], Any]) -> None:
    """Drop what was observed on draws of text, but for the last few: draws do not come again."""
    drawn = [key for key in references if isinstance(key[0].batch, int) and key[0].batch]
    for key in drawn[:-DRAWS]:
        del references[key]
