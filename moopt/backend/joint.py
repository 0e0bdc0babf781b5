"""A candidate as it would ship: merged, then quantized, then with packed keys and values; and what it is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from moopt.backend import language, memory, models, weights
from moopt.backend.candidate import Candidate, choose_device, choose_type
from moopt.backend.evaluator import Measured
from moopt.backend.kv.pairs import Pair, Scheme
from moopt.backend.kv.run import packing, states
from moopt.backend.language import Head
from moopt.backend.merging import Merger, Recipe
from moopt.backend.merging.tasks import Score, Task, score
from moopt.backend.options import Option, Options
from moopt.backend.quantizers import Quantizer
from moopt.backend.quiet import at_work
from moopt.backend.simulated import Simulated
from moopt.backend.text import Text, Tokens
from moopt.problem import Evaluation, Fidelity, Resources

DISTANCE = "distance"
BY_TEXT = ("kl", "perplexity", "top1_agreement")


@dataclass(frozen=True)
class Shipped:
    """What the parts of a joint problem decided.

    Attributes:
        recipe: How models are merged; None: the model as it is.
        widths: The options of matrices, by name.
        pairs: The widths of every layer's keys and values; None: as they are computed.
        scheme: How those are packed.
    """

    recipe: Recipe | None = None
    widths: Options = field(default_factory=dict)
    pairs: tuple[Pair, ...] | None = None
    scheme: Scheme | None = None


class Shipping(Protocol):
    """What the workbench needs to know of a problem."""

    model: str
    members: Mapping[str, str]
    base: str | None
    tasks: tuple[Task, ...]
    teacher: str | None
    quantizer: Quantizer
    group_size: int
    simulated: dict[Option, Simulated]
    text: Text
    context: int

    @property
    def objectives(self) -> Any:
        """The objectives."""


class JointWorkbench:
    """The models of a joint problem, ready to become any candidate.

    Attributes:
        resources: The device and the threads.
        tokenizer: Of the model.
    """

    def __init__(self, problem: Shipping, resources: Resources) -> None:
        if resources.threads is not None:
            torch.set_num_threads(resources.threads)
        self.resources, self._problem = resources, problem
        self._device = choose_device(resources.device)
        self._dtype = choose_type(self._device)
        self._merger = Merger(problem.members, problem.base) if problem.members else None
        self.tokenizer = models.load_tokenizer(problem.model)
        self._tokens: Tokens = problem.text.tokenized(self.tokenizer)
        self._wanted = {objective.name for objective in problem.objectives}
        self._teacher = None
        if problem.teacher is not None and self._wanted & set(BY_TEXT):
            self._teacher = models.load_model(problem.teacher).to(device=self._device, dtype=self._dtype)
            self._original = _widened(language.head_of(self._teacher))
        self._merged: tuple[Recipe | None, Candidate, float] | None = None
        self._said: tuple[Fidelity, list[Tensor]] | None = None

    def evaluate(self, shipped: Shipped, fidelity: Fidelity) -> Evaluation:
        """Measure a candidate on a batch: its text, if an objective is of text, and its tasks."""
        with at_work(self._device):
            candidate, distance = self.become(shipped.recipe)
            candidate.use(shipped.widths)
            text = self._of_text(candidate, shipped, fidelity)
            scores = self._of_tasks(candidate, shipped, fidelity)
        memory.give_back()
        values = {**text.values, **{name: score.value for name, score in scores.items()}}
        if DISTANCE in self._wanted:
            values[DISTANCE] = distance
        searching = isinstance(fidelity.batch, int)
        kept = {name: value for name, value in values.items() if name in self._wanted or not searching}
        tokens = text.tokens + sum(score.count for score in scores.values())
        attributes = {"forward_tokens": tokens, **{n: v for n, v in values.items() if n not in kept}}
        several = {name: torch.tensor(score.samples) for name, score in scores.items() if len(score.samples) > 1}
        samples, variances = replace(text, samples={**text.samples, **several}).statistics(kept.keys())
        return Evaluation(kept, variances, samples, attributes)

    def become(self, recipe: Recipe | None) -> tuple[Candidate, float]:
        """The merged model; the last one is kept, for its widths may be all that changes."""
        if self._merged is None or self._merged[0] != recipe:
            self._merged = None  # let go of it first
            problem, distance = self._problem, float("nan")
            if recipe is None or self._merger is None:
                model = models.load_model(problem.model)
            else:
                model = models.unfilled(problem.model, self._dtype)
                distance = self._merger.fill(model, recipe)
            made = Candidate(
                model, weights.inventory(model).weights, problem.quantizer, problem.group_size, self._device,
                self._dtype, simulated=problem.simulated,
            )  # fmt: skip
            self._merged = recipe, made, distance
        return self._merged[1], self._merged[2]

    def _of_text(self, candidate: Candidate, shipped: Shipped, fidelity: Fidelity) -> Measured:
        """KL divergence from the teacher, perplexity and agreement on a batch."""
        if self._teacher is None:
            return Measured({}, {}, 0)
        ids, head, tokens = self._ids(fidelity), _head(candidate), 0
        if self._said is None or self._said[0] != fidelity:
            with torch.inference_mode():
                self._said, tokens = (fidelity, list(language.hidden_states(self._teacher, ids))), ids.numel()
        said = self._said[1]
        reference = language.observe(self._teacher, ids, self._original, head, lambda model, ids: iter(said))
        run: language.Run = language.hidden_states
        if shipped.pairs is not None and shipped.scheme is not None:
            run = states(shipped.pairs, shipped.scheme)
        found = language.compare(candidate.model, reference, head, run)
        return Measured(found.means(), found.sequences(), tokens + ids.numel())

    def _of_tasks(self, candidate: Candidate, shipped: Shipped, fidelity: Fidelity) -> dict[str, Score]:
        split = fidelity.batch if isinstance(fidelity.batch, str) else "search"
        context: Any = contextlib.nullcontext(candidate.model)
        if shipped.pairs is not None and shipped.scheme is not None:
            context = packing(candidate.model, shipped.pairs, shipped.scheme)
        with context as model:
            return {task.name: score(task, model, self.tokenizer, split) for task in self._problem.tasks}

    def _ids(self, fidelity: Fidelity) -> Tensor:
        split = fidelity.batch if isinstance(fidelity.batch, str) else "search"
        return self._tokens.batch(split, 0, fidelity.tokens, self._problem.context).to(self._device)


def _head(candidate: Candidate) -> Head:
    """The output head of a candidate as it is set now."""
    tables = {w.kind: w.name for w in candidate.weights if w.kind != "linear"}
    name = tables.get("head", tables.get("embedding", ""))
    option = candidate.current.get(name)
    values = candidate.weight(name, option)
    return _widened(replace(language.head_of(candidate.model), weight=values))


def _widened(head: Head) -> Head:
    """A head whose weights are in float32 too, where products take them so."""
    return head if head.weight.device.type != "cpu" else replace(head, widened=head.weight.float())
