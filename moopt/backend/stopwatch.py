"""Decode and prefill times of candidates: predicted by a sum over single layers, or measured on the whole model."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch

from moopt.backend import models
from moopt.backend.convert import convert, plain
from moopt.backend.evaluator import Evaluator
from moopt.backend.latency import Table, Timing, head_call, kernel_calls, whole
from moopt.backend.loading import fill
from moopt.backend.models import empty
from moopt.backend.options import Options
from moopt.backend.weights import Inventory


class Stopwatch:
    """Times the candidates of a language model.

    The sum is that of the kernel calls, each timed once on this machine, and of the rest of the model: what the whole
    model took beyond its calls when it was measured at 8 bits.

    Args:
        model: Its name.
        evaluator: Has it loaded.
        inventory: Its matrices; of no mixture, which runs some of its layers.
        group_size: How many inputs share a scale.
        symmetric: Whether there are no zero points.
        context: Tokens of a prefill, and before the token that is decoded.
    """

    def __init__(
        self, model: str, evaluator: Evaluator, inventory: Inventory, group_size: int, symmetric: bool, context: int
    ) -> None:
        self._evaluator, self._inventory, self._context = evaluator, inventory, context
        self._table = Table(evaluator.candidate.device, group_size, symmetric)
        self._config = models.portable(models.load_config(model))
        self._key = f"{models.identity(model)}-{context}"
        self._rest: dict[str, float] = {}

    def predict(self, widths: Options) -> dict[str, float]:
        """decode_ms and prefill_ms from the table, in milliseconds.

        Args:
            widths: Of all matrices; what is missing runs at 16 bits.
        """
        if not self._rest:
            self._rest = self._measured_rest(dict.fromkeys(widths, 8))
        return {name: self._rest[name] + value for name, value in self._calls(widths).items()}

    def measure(self, widths: Options) -> dict[str, Timing]:
        """decode_ms and prefill_ms of the whole packed model."""
        return whole(self.packed(widths), self._context)

    def packed(self, widths: Options) -> Any:
        """The candidate as `moopt.load` would give it."""
        candidate = self._evaluator.candidate
        model = empty(json.loads(self._config), torch.bfloat16)
        replaced = {f"{name}.weight" for name in widths}
        named = candidate.model.named_parameters()
        fill(model, {name: value.data for name, value in named if name not in replaced})
        found = {name: candidate.variants.quantized(name, option) for name, option in widths.items()}
        repairs = {name: matrix.repair for name, matrix in found.items() if matrix.repair is not None}
        convert(model, {name: plain(m) for name, m in found.items()}, candidate.device, repairs=repairs)
        return model.to(candidate.device)

    def _calls(self, widths: Options) -> dict[str, float]:
        calls = kernel_calls(self._inventory, widths)
        head = head_call(self._inventory, widths)
        last = self._table.sum([head] if head else [], 1)  # logits of one token only
        return {
            "decode_ms": self._table.sum(calls, 1) + last,
            "prefill_ms": self._table.sum(calls, self._context) + last,
        }

    def _measured_rest(self, widths: Options) -> dict[str, float]:
        """What is not in the calls, measured at these widths; taken to be the same for every candidate."""
        calls = self._calls(widths)
        found: dict[str, Timing] = {}

        def beyond_calls(name: str) -> Timing:
            if not found:
                found.update(self.measure(widths))
            return Timing(found[name].median - calls[name], found[name].spread)

        return {n: self._table.figure(f"rest-{self._key}-{n}", partial(beyond_calls, n)).median for n in calls}
