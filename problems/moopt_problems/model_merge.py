"""How much of each fine-tuned model goes into one: the front of what the merge is good at, task by task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moopt.backend import models
from moopt.backend.joint import Shipped
from moopt.backend.merging import METHODS, Merger, Recipe, operators, recipe
from moopt.backend.merging.tasks import HasLoss, Task, as_task
from moopt.backend.merging.workbench import MergeWorkbench
from moopt.backend.metrics import Metric
from moopt.errors import ProblemError
from moopt.never_worse import VALIDATION
from moopt.problem import Evaluation, Fidelity, Objective, Resources, is_finite
from moopt.problem import plain as as_json
from moopt.space import Choice, Config, Float, Simplex, Space, Variable
from moopt_problems import checks
from moopt_problems.benched import Benched

FloatArray = npt.NDArray[np.float64]
DISTANCE = "distance"
"""The objective that is no task: how far the merge is from the base."""
LEAST_DENSITY = 0.1
GRADIENT_EXAMPLES, GRADIENT_TOKENS = 100, 2048
"""What a gradient is made of: labelled examples, or tokens of a text."""


class ModelMerge(Benched[MergeWorkbench]):
    """Coefficients for merging models of one architecture.

    Args:
        models: What is merged, by name, or a list of folders that are called by their last part: folders or Hugging
            Face ids in transformers' format; with `architecture` also single `.safetensors` files.
        tasks: The objectives: see `moopt.backend.merging.tasks`; metrics of `moopt.backend.metrics` will do, too.
        base: What all were tuned from, for methods that merge differences.
        method: One of `moopt.backend.merging.METHODS`, or several, which makes it a decision.
        per: What has weights of its own: the whole "model", each "block", or each "module".
        weights: From where to where each weight goes, or "simplex": weights from 0 that sum to 1.
        densities: From where to where the share goes that is kept of a model, where the method thins; a number fixes
            it. None: from 0.1 to 1.
        scale: What the merged difference is multiplied by; from where to where makes it a decision.
        distance: Whether the distance from the base is an objective: L1 norm of the difference over that of the base.
        architecture: Makes the network, for models that are not transformers'.
        seed: Of what chance drops, along with the configuration.
        validation: Whether points of the front compete with the members on the tasks' "validation" data.
        held_out: Whether the front is measured on the tasks' "held-out" data at the end.
        gradient_examples: Examples a task that a gradient is made of, for algorithms that use one; None: 100, and of
            text so many sequences as have 2,048 tokens.

    Raises:
        ProblemError, MergeError, ModelNotFound, MetricError: say what does not fit.
    """

    smooth = True

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]],
        tasks: Sequence[Task | Metric],
        base: str | os.PathLike[str] | None = None,
        method: str | Sequence[str] = "task_arithmetic",
        per: recipe.Per = "model",
        weights: Sequence[float] | str = (0.0, 1.0),
        densities: tuple[float, float] | float | None = None,
        scale: tuple[float, float] | float = 1.0,
        distance: bool = False,
        architecture: Callable[[], nn.Module] | None = None,
        seed: int = 0,
        validation: bool = True,
        held_out: bool = True,
        gradient_examples: int | None = None,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        checks.whole(0, seed=seed)
        if gradient_examples is not None:
            checks.whole(1, gradient_examples=gradient_examples)
        checks.switch(distance=distance, validation=validation, held_out=held_out)
        if architecture is not None and not callable(architecture):
            raise ProblemError(f"Got architecture={architecture!r}; expected a function that makes the network.")
        base = os.fspath(base) if isinstance(base, os.PathLike) else base
        if base is not None and (not isinstance(base, str) or not base):
            raise ProblemError(
                f"Got base={base!r}; expected the folder or the id of the model that all were tuned from."
            )
        self.models, self.base, self.per, self.seed = _named(models), base, per, seed
        self.methods = _methods(method, base, len(self.models))
        if not isinstance(tasks, Iterable):
            raise ProblemError(f"Got tasks={tasks!r}; expected a list of tasks.")
        self.tasks = tuple(map(as_task, tasks))
        self.architecture = architecture
        self._example_tokens = sum(getattr(task, "example_tokens", 1) for task in self.tasks)
        self.gradient_tokens = gradient_examples or _examples(self.tasks)
        files = [place for place in self.models.values() if place.endswith(".safetensors")]
        if files and architecture is None:
            raise ProblemError(
                f"Got the file {files[0]} and no network; give the model's folder, or architecture= that makes one."
            )
        names = Merger(self.models, base).names  # refuses what does not fit before a search begins
        self.groups = tuple(dict.fromkeys(recipe.group(name, per) for name in names))
        self.simplex = isinstance(weights, str) and weights == "simplex"
        self.scale = scale
        thins = any(METHODS[name].thins for name in self.methods)
        kept = (LEAST_DENSITY, 1.0) if densities is None else densities
        self.density = kept if thins else 1.0
        scales = any(METHODS[name].scales for name in self.methods)
        if densities is not None and not thins:
            raise ProblemError(f"Got densities={densities!r}; {', '.join(self.methods)} keeps all of every model.")
        if scale != 1.0 and not scales:
            raise ProblemError(f"Got scale={scale!r}; {', '.join(self.methods)} has no difference to scale.")
        if isinstance(scale, bool) or isinstance(kept, bool):
            raise ProblemError(f"Got scale={scale!r} and densities={densities!r}; expected numbers, not yes or no.")
        if is_finite(self.density) and not 0 <= self.density <= 1:  # type: ignore[operator]
            raise ProblemError(
                f"Got densities={densities!r}; expected a number, or the least and the most, within 0 and 1."
            )
        self.space = Space(dict(self._variables(weights)))
        self.objectives = self._objectives(distance)
        self.fidelity = Fidelity(0, 0)
        splits = ((VALIDATION, validation), ("held-out", held_out))
        self.measurements = {split: Fidelity(0, split) for split, wanted in splits if wanted}
        if not self._has_gradient:
            self.gradient = None  # type: ignore[assignment, method-assign]

    def _opened(self, resources: Resources) -> MergeWorkbench:
        return MergeWorkbench(self, resources)

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        return self._ready.evaluate(config, fidelity)

    def gradient(self, config: Config, fidelity: Fidelity) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """The mean loss of all tasks at a merge, and how it changes towards each model, [groups, models]; no curvature.

        A group's row is the inner product of the loss's gradient with what would become of it: the model's tensors
        less those of the merge.
        """
        return self._ready.gradient(config, fidelity)

    def forward_tokens(self, kind: str, fidelity: Fidelity) -> int:
        return 3 * fidelity.tokens * self._example_tokens if kind == "gradient" else 0

    def recipe(self, config: Config) -> Recipe:
        """The merge that a configuration stands for."""
        weights: dict[str, dict[str, float]] = {name: {} for name in self.models}
        for group in self.groups:
            name = _name("weight", "", group)
            shares = self.space.simplexes[name].weights(name, config) if self.simplex else None
            for model in self.models:
                weights[model][group] = shares[model] if shares else config[_name("weight", model, group)]
        kept = {m: config.get(_name("density", m), self.density) for m in self.models}
        densities = {model: dict.fromkeys(self.groups, float(share)) for model, share in kept.items()}
        method, scale = config.get("method", self.methods[0]), config.get("scale", self.scale)
        return Recipe(method, weights, densities, self.per, float(scale), self.seed)

    def apply(self, candidate: Shipped, config: Config) -> Shipped:
        """A candidate merged by a configuration: see `Joint`."""
        return replace(candidate, recipe=self.recipe(config))

    def baselines(self) -> dict[str, Config]:
        """Every model by itself, their mean, and the base, as far as the space has them."""
        names = tuple(self.models)
        wanted = {f"only {model}": {other: float(other == model) for other in names} for model in names}
        wanted["mean"] = dict.fromkeys(names, 1.0 / len(names))
        if self.base is not None and METHODS[self.methods[0]].from_base:
            wanted["base"] = dict.fromkeys(names, 0.0)
        found = {}
        for label, weights in wanted.items():
            config = self.configuration(dict.fromkeys(self.groups, weights))
            if config is not None:
                found[label] = config
        return found

    def configuration(self, weights: Mapping[str, Mapping[str, float]]) -> Config | None:
        """The configuration with such weights, by group and model, all of each kept; None if the space has none."""
        config: Config = {}
        for group, each in weights.items():
            if self.simplex and abs(sum(each.values()) - 1) > 1e-6:
                return None
            if self.simplex:
                config |= self.space.simplexes[_name("weight", "", group)].config(_name("weight", "", group), each)
            else:
                config |= {_name("weight", model, group): weight for model, weight in each.items()}
        for name, variable in self.space.items():
            if name == "method":
                config[name] = self.methods[0]
            elif name not in config:  # a density or a scale: as near to 1 as it goes
                config[name] = min(max(1.0, variable.lower), variable.upper)
        within = all(
            self.space[name].lower <= config[name] <= self.space[name].upper for name in config if name != "method"
        )
        return self.space.validate(config) if within else None

    def decisions(self) -> list[dict[str, Any]]:
        places = {_name("density", model): (model, "density") for model in self.models}
        for group in self.groups:
            for model in self.models:
                name = f"{_name('weight', '', group)}.{model}" if self.simplex else _name("weight", model, group)
                places[name] = (group, f"weight {model}") if group else (model, "weight")
        named = ((name, *places.get(name, (name, ""))) for name in self.space.names)
        return [{"name": name, "row": row, "column": column, "label": name} for name, row, column in named]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        apart = {"models", "tasks", "base", "architecture"}
        plain = {k: v for k, v in self._arguments.items() if k not in apart}
        return {
            "identity": {
                "problem": type(self).__qualname__,
                **as_json(plain),
                "models": {name: _identity(place) for name, place in self.models.items()},
                "base": None if self.base is None else _identity(self.base),
                "architecture": getattr(self.architecture, "__qualname__", None),
                "tasks": [task.describe() for task in self.tasks],
            },
            "environment": {"torch": torch.__version__, "cores": os.cpu_count()},
        }

    def save(self, config: Config, path: str | os.PathLike[str]) -> Path:
        """Write a merge as a folder of safetensors in the layout of the base, for any tool."""
        return self._ready.merger.save(path, self.recipe(self.space.validate(config)))

    @property
    def _has_gradient(self) -> bool:
        """Whether there is a slope towards each model: merges lie in the models' hull, and every task has a loss."""
        return self.simplex and self.methods == ("linear",) and all(isinstance(task, HasLoss) for task in self.tasks)

    def _variables(self, weights: Sequence[float] | str) -> Iterator[tuple[str, Variable | Simplex]]:
        if len(self.methods) > 1:
            yield "method", Choice(*self.methods)
        low, high = (0.0, 1.0) if self.simplex else _range("weights", weights, -np.inf, np.inf)
        for group in self.groups:
            if self.simplex:
                yield _name("weight", "", group), Simplex(*self.models)
            else:
                yield from ((_name("weight", model, group), Float(low, high)) for model in self.models)
        if not is_finite(self.density):
            low, high = _range("densities", self.density, 0.0, 1.0)
            yield from ((_name("density", model), Float(low, high)) for model in self.models)
        if not is_finite(self.scale):
            yield "scale", Float(*_range("scale", self.scale, -np.inf, np.inf))

    def _objectives(self, distance: bool) -> list[Objective]:
        if not self.tasks:
            raise ProblemError("Got no tasks; expected at least one, such as moopt.backend.merging.tasks.TextLoss.")
        if any(task.name == DISTANCE for task in self.tasks):
            raise ProblemError(f"A task is called {DISTANCE!r}, as the distance from the base is; rename it.")
        if distance and self.base is None:
            raise ProblemError("Got distance=True and no base to be distant from; name the base.")
        found = [Objective(task.name, task.direction, task.unit) for task in self.tasks]
        found += [Objective(DISTANCE, unit="of the base's L1 norm")] if distance else []
        names = [objective.name for objective in found]
        if again := sorted({name for name in names if names.count(name) > 1}):
            raise ProblemError(f"Two objectives are called {again[0]!r}; give each task a name of its own.")
        return found


def _name(kind: str, *parts: str) -> str:
    """What a variable is called: its kind, and the model and group where there are such."""
    return ".".join((kind, *(part for part in parts if part)))


def _named(given: Any) -> dict[str, str]:
    """The models by name."""
    if isinstance(given, Mapping):
        found = {name: os.fspath(place) if isinstance(place, os.PathLike) else place for name, place in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str):
        if bad := [place for place in given if not isinstance(place, (str, os.PathLike))]:
            raise ProblemError(f"Got a model {bad[0]!r}; expected its folder, or its name as text.")
        found = {Path(place).name.removesuffix(".safetensors"): os.fspath(place) for place in given}
        if len(found) < len(given):
            raise ProblemError(
                "Two of the models have the same last part; give names: {'one': folder, 'other': folder}."
            )
    else:
        raise ProblemError(f"Got models={given!r}; expected folders in a list, or by name.")
    if not found:
        raise ProblemError("Got no models; expected two or more folders, in a list or by name.")
    if bad := [name for name in found if not isinstance(name, str) or not name or not isinstance(found[name], str)]:
        raise ProblemError(f"Got a model {bad[0]!r}: {found[bad[0]]!r}; expected a name, and a folder as text.")
    return found


def _examples(tasks: Iterable[Task]) -> int:
    """How many examples a gradient is made of: of text sequences of some tokens in all."""
    longest = max((getattr(task, "example_tokens", 1) for task in tasks), default=1)
    return GRADIENT_EXAMPLES if longest == 1 else max(1, GRADIENT_TOKENS // longest)


def _methods(given: str | Sequence[str], base: str | None, count: int) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ProblemError(f"Got method={given!r}; expected one of {', '.join(METHODS)}, or several, each once.")
    for name in names:
        method = operators.named(name)
        if method.from_base and base is None:
            raise ProblemError(f"{name} merges differences from a base; name the model that all were tuned from.")
        if method.models not in (None, count):
            raise ProblemError(f"{name} merges {method.models} models; got {count}.")
    return names


def _range(name: str, given: Any, least: float, most: float) -> tuple[float, float]:
    good = isinstance(given, (list, tuple, np.ndarray)) and len(given) == 2 and all(map(is_finite, given))
    if not good or not least <= given[0] < given[1] <= most:
        within = f" within {least:g} and {most:g}" if np.isfinite(least) else ""
        extra = ", or 'simplex'" if name == "weights" else ", or a number"
        raise ProblemError(f"Got {name}={given!r}; expected the least and the most{within}{extra}.")
    return float(given[0]), float(given[1])


def _identity(place: str) -> str:
    return models.file_identity(Path(place)) if place.endswith(".safetensors") else models.identity(place)
