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
        f"Each line is one of the models, and its height is the weight{over} that it has in the front's points, along "
        f"their {look.plain(x)}: where lines cross, the merge turns from one model to another."
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
    config: Mapping[str, Any] = trial.config
    rows = dict.fromkeys(d["row"] for d in history.meta["decisions"] if d["column"].startswith("weight "))
    groups = ["" if row == "all" else row for row in rows]
    names = [f"weight.{group}" if group else "weight" for group in groups]
    if history.meta["identity"].get("weights") == "simplex":
        every = [Simplex(*models).weights(name, config) for name in names]
    else:
        every = [{m: config[f"weight.{m}.{g}" if g else f"weight.{m}"] for m in models} for g in groups]
    return {model: float(np.mean([each[model] for each in every])) for model in models}


def _figure(history: History, front: Sequence[Trial], table: pd.DataFrame, models: Sequence[str]) -> go.Figure:
    x = axes(history).x
    values = [trial.values[x.name] for trial in front]
    figure = go.Figure()
    for place, model in enumerate(models):
        weights = table[model].tolist()
        figure.add_scatter(
            x=values, y=weights, name=escape(model), mode="lines+markers",
            line={"color": look.UNORDERED[place % len(look.UNORDERED)]}, marker={"size": 6}, hoverinfo="text",
            hovertext=[
                f"<b>{escape(model)} {look.number(w)}</b><br>{look.hover(history, trial)}"
                for w, trial in zip(weights, front, strict=True)
            ],
        )  # fmt: skip
    figure.update_xaxes(look.axis(x, values))
    figure.update_yaxes(title={"text": "weight"})
    return figure
