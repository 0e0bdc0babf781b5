"""The card of a merge: how much of each model is in each point of the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt.history import History, Trial
from moopt.space import Simplex
from moopt.views import Card, look
from moopt.views.axes import axes
from moopt.views.card import nothing_yet
from moopt_problems.parts import as_part

TITLE = "How much of each model"


def weights_card(history: History) -> Card | None:
    """The weights of the models along the front; None for studies that merge nothing."""
    part = as_part(history, "ModelMerge")
    if part is None:
        return None
    x, models = axes(part).x, list(part.meta["identity"]["models"])
    over = "" if part.meta["identity"].get("per", "model") == "model" else ", the mean over its parts,"
    sentence = (
        f"Each column is one point of the front, ordered by {look.plain(x)}, and its parts are the weights{over} of "
        "the models: where one colour gives way to another, the merge turns from one model to the other."
    )
    if reason := nothing_yet(part):
        return Card(TITLE, sentence, reason=reason)
    front = part.front()
    found = [_weights(part, trial, models) for trial in front]
    table = pd.DataFrame(
        {"trial": [t.number for t in front], x.label: [t.values[x.name] for t in front]}
        | {model: [each[model] for each in found] for model in models}
    )
    return Card(TITLE, sentence, table, _figure(part, front, table, models))


def _weights(history: History, trial: Trial, models: Sequence[str]) -> dict[str, float]:
    """The weight of each model in a trial: over groups the mean."""
    config: Mapping[str, Any] = {k: v for k, v in trial.config.items() if k.startswith("weight.")}
    if history.meta["identity"].get("weights") == "simplex":
        simplex = Simplex(*models)
        named = {key.removesuffix(f".{models[0]}") for key in config if key.endswith(f".{models[0]}")}
        every = [simplex.weights(name, config) for name in named if simplex.variables(name).keys() <= config.keys()]
        return {model: float(np.mean([each[model] for each in every])) for model in models}
    found: dict[str, list[float]] = {model: [] for model in models}
    for each in history.meta["decisions"]:
        kind, _, model = each["column"].partition(" ")
        if kind == "weight":  # of a model's group, or of all of a model
            found[model or each["row"]].append(config[each["name"]])
    return {model: float(np.mean(values)) for model, values in found.items()}


def _figure(history: History, front: Sequence[Trial], table: pd.DataFrame, models: Sequence[str]) -> go.Figure:
    x = axes(history).x
    figure = go.Figure()
    for place, model in enumerate(models):
        weights = table[model].tolist()
        figure.add_bar(
            x=list(range(len(front))), y=weights, name=escape(model), hoverinfo="text",
            marker={"color": look.UNORDERED[place % len(look.UNORDERED)]},
            hovertext=[
                f"<b>{escape(model)} {look.number(w)}</b><br>{look.hover(history, trial)}"
                for w, trial in zip(weights, front, strict=True)
            ],
        )  # fmt: skip
    shown = sorted({round(i) for i in np.linspace(0, len(front) - 1, min(len(front), 8))})
    figure.update_xaxes(
        title={"text": f"{escape(x.label)} of the front's points, in order"}, tickvals=shown, showgrid=False,
        ticktext=[look.number(front[i].values[x.name], digits=3) for i in shown],
    )  # fmt: skip
    figure.update_yaxes(title={"text": "weight"})
    figure.update_layout(barmode="relative", bargap=0.08)
    return figure
