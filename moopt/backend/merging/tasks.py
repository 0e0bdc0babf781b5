"""What a merged model is to be good at: a score on the data of a user, image classes, or text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from moopt.backend.metrics import Metric
from moopt.backend.text import Text, Tokens
from moopt.errors import MetricError

Data = Mapping[str, tuple[Tensor, Tensor]]
"""Inputs [n, ...] and labels [n] by split: "search", and where there are any "validation" and "held-out"."""
AT_ONCE = 256
"""Examples that a model runs at once."""


@dataclass(frozen=True)
class Score:
    """What a model scored.

    Attributes:
        value: The score.
        samples: What it is the mean of, in an order that does not change; none where it is no mean.
        count: How many examples or tokens were run.
    """

    value: float
    samples: tuple[float, ...] = ()
    count: int = 0


class Task(Protocol):
    """One objective of a merge; the classes below are such, and so is any class that has all this."""

    @property
    def name(self) -> str:
        """What the objective is called."""

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which scores are better."""

    @property
    def unit(self) -> str:
        """What it is measured in."""

    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        """What a model scores on a split of the data."""

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""


@runtime_checkable
class HasLoss(Protocol):
    """A task whose loss has a gradient."""

    @property
    def example_tokens(self) -> int:
        """Tokens of an example; 1 where examples have none."""

    def losses(self, model: nn.Module, tokenizer: Any, examples: int, number: int) -> Iterator[Tensor]:
        """The mean loss on draw `number` of so many examples of the search split, in parts that sum to it.

        Each is differentiated before the next is asked for, so that only one at a time takes memory.
        """


@dataclass(frozen=True)
class Function:
    """Any metric of `moopt.backend.metrics` as a task: it sees the model and not which split is asked for.

    Attributes:
        metric: The metric.
    """

    metric: Metric

    @property
    def name(self) -> str:
        """What the metric is called."""
        return self.metric.name

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which numbers are better."""
        return self.metric.direction

    @property
    def unit(self) -> str:
        """What it is measured in."""
        return self.metric.unit

    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        """The metric's number."""
        return Score(self.metric.measure(model, tokenizer))

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        return self.metric.describe()


@dataclass(frozen=True)
class Classification:
    """How well a model tells classes apart.

    Attributes:
        name: What the objective is called.
        data: Gives the inputs and labels of every split; a function that other processes can import, or a
            `functools.partial` of one.
        measure: "accuracy", or "loss", the cross-entropy in nats.
    """

    name: str
    data: Callable[[], Data]
    measure: Literal["accuracy", "loss"] = "accuracy"

    def __post_init__(self) -> None:
        if self.measure not in ("accuracy", "loss"):
            raise MetricError(f"The task {self.name!r} has measure={self.measure!r}; expected 'accuracy' or 'loss'.")

    @property
    def direction(self) -> Literal["min", "max"]:
        """An accuracy is to be high, a loss low."""
        return "max" if self.measure == "accuracy" else "min"

    @property
    def unit(self) -> str:
        """Nats for a loss."""
        return "" if self.measure == "accuracy" else "nats"

    @property
    def splits(self) -> tuple[str, ...]:
        """What there is data for."""
        return tuple(self._data)

    @torch.inference_mode()
    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        """The accuracy or loss on a split."""
        inputs, labels = self._of(split)
        found = []
        for x, y in zip(inputs.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            logits = _logits(model, x.to(_device(model))).float()
            y = y.to(logits.device)
            found.append(logits.argmax(-1).eq(y) if self.measure == "accuracy" else _nll(logits, y))
        each = torch.cat(found).double()
        return Score(float(each.mean()), tuple(each.tolist()), len(each))

    @property
    def example_tokens(self) -> int:
        """Images and their like have none."""
        return 1

    def losses(self, model: nn.Module, tokenizer: Any, examples: int, number: int) -> Iterator[Tensor]:
        """The cross-entropy on a draw from the search split, at once."""
        inputs, labels = self._of("search")
        rows = np.random.default_rng([number, len(labels)]).permutation(len(labels))[:examples]
        chosen = torch.from_numpy(np.sort(rows))
        logits = _logits(model, inputs[chosen].to(_device(model))).float()
        yield _nll(logits, labels[chosen].to(logits.device)).mean()

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        function = getattr(self.data, "func", self.data)
        given = [getattr(self.data, "args", ()), getattr(self.data, "keywords", {})]
        named = getattr(function, "__qualname__", type(function).__qualname__)
        return {"name": self.name, "data": [named, *map(repr, given)], "measure": self.measure}

    def _of(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self._data:
            raise MetricError(f"The task {self.name!r} has no {split!r} data; it has {', '.join(self._data)}.")
        return self._data[split]

    @cached_property
    def _data(self) -> Data:
        found = self.data() if callable(self.data) else self.data
        if not callable(self.data) or not isinstance(found, Mapping) or not all(map(_is_pair, found.values())):
            raise MetricError(
                f"The task {self.name!r} has data={self.data!r}; expected a function that gives inputs and as many "
                "labels, two tensors, by split: {'search': (inputs, labels), ...}."
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "data": self.data, "measure": self.measure}


@dataclass(frozen=True)
class TextLoss:
    """How well a language model predicts a kind of text: nats per token.

    Attributes:
        name: What the objective is called.
        text: "prose", "docstrings", "code", "mix", or a path.
        tokens: Tokens of a measurement.
        context: Tokens of a sequence.
    """

    name: str
    text: str
    tokens: int = 2048
    context: int = 512
    _tokens: dict[int, Tokens] = field(default_factory=dict, init=False, repr=False, compare=False)

    direction: Literal["min", "max"] = field(default="min", init=False)
    unit: str = field(default="nats", init=False)

    def __post_init__(self) -> None:
        Text(self.text)  # refuses what there is not
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (self.tokens, self.context))
        if not whole or not 2 <= self.context <= self.tokens:
            raise MetricError(
                f"The task {self.name!r} has tokens={self.tokens!r} and context={self.context!r}; expected whole "
                "numbers, a context of two tokens or more and at least as many tokens as one."
            )

    @torch.inference_mode()
    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        """The mean loss on a split, and that of each sequence."""
        ids = self._of(tokenizer).batch(split, 0, self.tokens, self.context)
        each = [self._sequence(model, row[None]) for row in ids]
        losses = tuple(float(loss) for loss in each)
        return Score(float(np.mean(losses)), losses, ids.numel())

    @property
    def example_tokens(self) -> int:
        """Those of a sequence."""
        return self.context

    def losses(self, model: nn.Module, tokenizer: Any, examples: int, number: int) -> Iterator[Tensor]:
        """The mean loss on so many sequences drawn from the search split, a sequence at a time."""
        ids = self._of(tokenizer).draws("search", examples * self.context, self.context, number)
        return (self._sequence(model, row[None]) / len(ids) for row in ids)

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        return {"name": self.name, "text": Text(self.text).identity, "tokens": self.tokens, "context": self.context}

    def _sequence(self, model: nn.Module, ids: Tensor) -> Tensor:
        ids = ids.to(_device(model))
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return _nll(logits, ids[0, 1:]).mean()

    def _of(self, tokenizer: Any) -> Tokens:
        if id(tokenizer) not in self._tokens:
            self._tokens.clear()
            self._tokens[id(tokenizer)] = Text(self.text).tokenized(tokenizer)
        return self._tokens[id(tokenizer)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokens": {}}


@dataclass(frozen=True)
class LMEval:
    """A task of EleutherAI's evaluation harness, which has to be installed: pip install lm-eval.

    It sees the model and not which split is asked for: the harness has its own data, which it downloads.

    Attributes:
        name: What the objective is called.
        task: The harness's name of it, such as "arc_easy".
        metric: Which of its figures, such as "acc,none".
        limit: How many examples; None for all.
        direction: Which figures are better.
        unit: What it is measured in.
        folder: Where task files of one's own are, in the harness's format.

    Raises:
        MetricError: the harness is not installed.
    """

    name: str
    task: str
    metric: str = "acc,none"
    limit: int | None = 100
    direction: Literal["min", "max"] = "max"
    unit: str = ""
    folder: str | None = None

    def __post_init__(self) -> None:
        if find_spec("lm_eval") is None:
            raise MetricError(
                f"The task {self.name!r} needs EleutherAI's harness, which is not installed: pip install lm-eval."
            )

    def score(self, model: nn.Module, tokenizer: Any, split: str) -> Score:
        """The harness's figure.

        Raises:
            MetricError: the harness knows no such task, or its task has no such figure.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        known = TaskManager(include_path=self.folder)
        if self.task not in known.all_tasks:
            where = f" or in {self.folder}" if self.folder else ""
            raise MetricError(f"The harness knows no task {self.task!r}{where}; `lm_eval --tasks list` shows all.")
        harness = HFLM(pretrained=model, tokenizer=tokenizer)
        found = simple_evaluate(harness, tasks=[self.task], limit=self.limit, bootstrap_iters=0, task_manager=known)
        figures = found["results"][self.task]
        if self.metric not in figures:
            able = ", ".join(name for name, value in figures.items() if isinstance(value, float))
            raise MetricError(f"The task {self.task!r} has no figure {self.metric!r}; it has {able}.")
        return Score(float(figures[self.metric]), count=int(found["n-samples"][self.task]["effective"]))

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        own = {} if self.folder is None else {"folder": self.folder}
        return {"name": self.name, "lm-eval": self.task, "metric": self.metric, "limit": self.limit, **own}


def as_task(given: Any) -> Task:
    """A task as it is, and a metric of `moopt.backend.metrics` as one.

    Raises:
        MetricError: it is neither, or a metric for finalists alone.
    """
    if hasattr(given, "score"):
        if lacking := [name for name in ("name", "direction", "unit", "describe") if not hasattr(given, name)]:
            raise MetricError(
                f"The task {given!r} has no {' and no '.join(lacking)}; see moopt.backend.merging.tasks.Task."
            )
        return cast(Task, given)
    if not hasattr(given, "measure"):
        raise MetricError(f"Got the task {given!r}; expected one such as TextLoss or Classification, or a metric.")
    if given.when != "every":
        raise MetricError(
            f"The metric {given.name!r} is for finalists; a task of a merge is measured of every candidate: say "
            "when='every', or leave it out."
        )
    return Function(given)


def score(task: Task, model: nn.Module, tokenizer: Any, split: str) -> Score:
    """What a task says of a model on a split; a number by itself is a score without samples.

    Raises:
        MetricError: it says something else.
    """
    found: Any = task.score(model, tokenizer, split)
    if isinstance(found, Score):
        return found
    if isinstance(found, (int, float, np.number)) and not isinstance(found, bool):
        return Score(float(found))
    raise MetricError(f"The task {task.name!r} scored {found!r}; expected a Score, or a number.")


def _is_pair(value: object) -> bool:
    """Whether something is two tensors of one length."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(each, Tensor) for each in value)
    return pair and len(value[0]) == len(value[1])  # type: ignore[index]


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a network says of inputs, also where it wraps it as transformers' do."""
    found = model(inputs)
    return found if isinstance(found, Tensor) else cast(Tensor, found.logits)


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
