"""A merge as mergekit's YAML, of which JSON is a part: the recipe, for whoever has the models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moopt.backend import models
from moopt.backend.exporters.shipment import Merges, written
from moopt.backend.merging import METHODS, Recipe
from moopt.backend.merging.operators import slerp_share
from moopt.backend.merging.recipe import WHOLE
from moopt.errors import ExportError
from moopt.exporting import Exporter, Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "mergekit.yaml"


class Mergekit(Exporter):
    """`mergekit-yaml mergekit.yaml OUT` makes the model; one weight a model, for mergekit's layers are others."""

    name = "mergekit"
    about = "mergekit-yaml, which makes the merge from its models"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        if not isinstance(problem, Merges):
            raise ExportError(f"mergekit's recipe is of a ModelMerge alone; this is a {type(problem).__name__}.")
        recipe = problem.recipe(config)
        method = METHODS[recipe.method]
        if recipe.per != "model":
            raise ExportError(
                f"The merge has weights per {recipe.per}; this format is written for one weight a model. Search with "
                "per='model', or export 'checkpoint'."
            )
        if method.draws:
            raise ExportError(
                f"{recipe.method} drops at random, and mergekit would drop others than those that were measured; "
                "export 'checkpoint'."
            )
        if files := [place for place in problem.models.values() if place.endswith(".safetensors")]:
            raise ExportError(f"mergekit merges models in folders; {files[0]} is a single file. Export 'checkpoint'.")
        made_of = [*([problem.base] if problem.base else []), *problem.models.values()]
        places = {name: models.location(place) for name, place in problem.models.items()}
        asked = configuration(recipe, places, None if problem.base is None else models.location(problem.base))
        if dtype := models.load_config(made_of[0]).dtype:  # our merge is in the type of the first of them, too
            asked["out_dtype"] = str(dtype).removeprefix("torch.")
        (folder / FILE).write_text(json.dumps(asked, indent=1) + "\n")
        return written(0, [f"mergekit-yaml {{path}}/{FILE} merged"], [], made_of)


def configuration(recipe: Recipe, places: Mapping[str, str], base: str | None) -> dict[str, Any]:
    """A merge with one weight a model as mergekit's configuration.

    Args:
        recipe: The merge.
        places: The models' folders, by the names that the recipe calls them.
        base: The folder of what all were tuned from; for methods that merge differences.
    """
    method, weights = METHODS[recipe.method], {name: _only(recipe.weights[name]) for name in places}
    asked: dict[str, Any] = {"merge_method": recipe.method, "dtype": "float32"}
    if recipe.method == "slerp":
        first, second = places
        return asked | {
            "base_model": places[first], "models": [{"model": place} for place in places.values()],
            "parameters": {"t": slerp_share(weights[first], weights[second])},
        }  # fmt: skip
    kept = {name: _only(recipe.densities.get(name, {WHOLE: 1.0})) for name in places}
    asked["models"] = [
        {"model": place, "parameters": {"weight": weights[name], **({"density": kept[name]} if method.thins else {})}}
        for name, place in places.items()
    ]
    return asked | ({"base_model": base, "parameters": {"lambda": recipe.scale}} if method.from_base else {})


def _only(values: Any) -> float:
    """The one number of a recipe that treats the whole model alike."""
    return float(next(iter(values.values())))
