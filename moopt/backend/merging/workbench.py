"""What a merging problem does once its models are opened: merge, score, take gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moopt.backend import models
from moopt.backend.candidate import choose_device, choose_type
from moopt.backend.merging.merger import Merger, gradients
from moopt.backend.merging.recipe import Per, Recipe
from moopt.backend.merging.tasks import Classification, HasLoss, Task, TextLoss, score
from moopt.backend.quiet import at_work
from moopt.errors import MergeError
from moopt.problem import Evaluation, Fidelity, Resources
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]


class Merging(Protocol):
    """What the workbench needs to know of a problem."""

    models: dict[str, str]
    base: str | None
    tasks: tuple[Task, ...]
    per: Per
    groups: tuple[str, ...]
    architecture: Callable[[], nn.Module] | None
    measurements: Mapping[str, Fidelity]

    @property
    def objectives(self) -> Any:
        """The objectives."""

    def recipe(self, config: Config) -> Recipe:
        """The merge that a configuration stands for."""


class MergeWorkbench:
    """Models that are open, and a network that becomes any merge of them.

    Attributes:
        merger: Merges them.
        model: The network.
        tokenizer: Of the models; None if they read no text.
    """

    def __init__(self, problem: Merging, resources: Resources) -> None:
        if resources.threads is not None:
            torch.set_num_threads(resources.threads)
        self._problem = problem
        self.merger = Merger(problem.models, problem.base)
        device, place = choose_device(resources.device), problem.base or next(iter(problem.models.values()))
        self.tokenizer = None
        if problem.architecture is not None:
            network = _made(problem.architecture).eval().requires_grad_(False)
        else:
            is_language = models.generates(models.load_config(place))
            network = models.unfilled(place, choose_type(device) if is_language else torch.float32)
            self.tokenizer = models.load_tokenizer(place) if is_language else None
        self.merger.check(network)
        self.model: nn.Module = network.to(device)
        self._check_tasks()

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        """Score a merge on the split that a fidelity names; a number stands for the search's."""
        split = fidelity.batch if isinstance(fidelity.batch, str) else "search"
        with at_work(next(self.model.parameters()).device):
            distance = self.merger.fill(self.model, self._problem.recipe(config))
            scores = {task.name: score(task, self.model, self.tokenizer, split) for task in self._problem.tasks}
        values = {name: score.value for name, score in scores.items()}
        attributes: dict[str, Any] = {"forward_tokens": sum(score.count for score in scores.values())}
        if any(objective.name == "distance" for objective in self._problem.objectives):
            values["distance"] = distance
        elif self._problem.base is not None:
            attributes["distance"] = distance
        samples = {name: score.samples for name, score in scores.items() if len(score.samples) > 1}
        variances = {name: float(np.var(each, ddof=1)) / len(each) for name, each in samples.items()}
        return Evaluation(values, variances, {name: list(each) for name, each in samples.items()}, attributes)

    def gradient(self, config: Config, fidelity: Fidelity) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """The mean loss of all tasks at a merge, and its slope towards each model, [groups, models]."""
        problem, total = self._problem, 0.0
        self.merger.fill(self.model, problem.recipe(config))
        with at_work(next(self.model.parameters()).device), gradients(self.model):
            for task in problem.tasks:
                assert isinstance(task, HasLoss)
                for part in task.losses(self.model, self.tokenizer, fidelity.tokens, int(fidelity.batch)):
                    share = part / len(problem.tasks)
                    share.backward()
                    total += float(share.detach())
            products = self.merger.products(self.model, problem.per)
        linear = np.array([[products[group][model] for model in problem.models] for group in problem.groups])
        return {"loss": total}, linear, np.zeros_like(linear)

    def _check_tasks(self) -> None:
        """Refuse tasks that lack what they measure with, or data of a split, before anything is searched."""
        for task in self._problem.tasks:
            if isinstance(task, TextLoss) and self.tokenizer is None:
                raise MergeError(f"The task {task.name!r} reads text, and the models generate none.")
            if not isinstance(task, Classification):
                continue
            for split in ("search", *self._problem.measurements):
                if split not in task.splits:
                    leave = "" if split == "search" else f", or say {split.replace('-', '_')}=False"
                    has = ", ".join(task.splits)
                    raise MergeError(f"The task {task.name!r} has no {split!r} data; it has {has}. Give some{leave}.")


def _made(architecture: Callable[[], nn.Module]) -> nn.Module:
    """The network that a user's function makes."""
    try:
        found: Any = architecture()
    except Exception as error:
        raise MergeError(f"architecture raised {error!r}; expected a function that makes the network.") from error
    if not isinstance(found, nn.Module):
        raise MergeError(f"architecture gave {found!r}; expected a torch.nn.Module.")
    return found
