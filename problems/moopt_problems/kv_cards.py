"""Cards of KV-cache precision: the pairs of a front's layers, and what KVTuner's steps found on the way there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from moopt.backend.kv.groups import Group, of_mapping
from moopt.backend.kv.pairs import WIDTHS, Pair
from moopt.history import History
from moopt.views import Card, look
from moopt.views.axes import axes
from moopt.views.card import nothing_yet
from moopt_problems.parts import as_part

if TYPE_CHECKING:
    from moopt.backend.kv.profiling import Profile

TITLE = "The bits of keys and values"


def pairs_card(history: History) -> Card | None:
    """A heat map with two rows a layer, keys and values, and a column for each point of the front.

    None for studies of other problems.
    """
    part = as_part(history, "KVCachePrecision")
    if part is None:
        return None
    history = part
    x = axes(history).x
    sentence = (
        f"Each column is one point of the front, ordered by {x.name}; each layer has a line for its keys and one for "
        "its values, and the colour is their bits: layers that stay bright where others darken lose most."
    )
    if reason := nothing_yet(history):
        return Card(TITLE, sentence, reason=reason)
    front = history.front()
    found = [_of_layers(history, trial.config) for trial in front]
    layers = sorted(found[0])
    columns = {
        f"trial {trial.number}: {look.amount(trial.values[x.name], x.unit)}": [str(pairs[layer]) for layer in layers]
        for trial, pairs in zip(front, found, strict=True)
    }
    table = pd.DataFrame({"layer": layers, **columns})
    names = [f"{layer} {part}" for layer in layers for part in ("K", "V")]
    bits = [[bits for layer in layers for bits in (pairs[layer].k, pairs[layer].v)] for pairs in found]
    hovers = [
        [
            f"<b>layer {name}: {bits[column][row]} bits</b><br>{look.hover(history, trial)}"
            for column, trial in enumerate(front)
        ]
        for row, name in enumerate(names)
    ]
    return Card(TITLE, sentence, table, _heat_map(np.array(bits).T, names, list(columns), hovers))


def profile_card(profile: Profile, error: str = "fisher") -> Card:
    """What each pair does to each layer by itself."""
    sentence = (
        f"Each line is a layer and each column a pair: the colour is {_ERRORS[error]} when that layer alone caches at "
        "it, so a bright line is a layer that loses much, and the least bits that are dark enough are what it needs."
    )
    errors, names = profile.of(error), list(map(str, profile.pairs))
    table = pd.DataFrame({"layer": range(len(profile)), **{n: errors[:, i] for i, n in enumerate(names)}})
    figure = go.Figure(
        go.Heatmap(
            z=np.log10(np.maximum(errors, 1e-6)), x=names, y=[f"layer {n}" for n in range(len(profile))],
            coloraxis="coloraxis", xgap=1, customdata=errors,
            hovertemplate="%{y}, %{x}: %{customdata:.4f}<extra></extra>",
        )
    )  # fmt: skip
    ticks = list(
        range(int(np.floor(np.log10(max(errors.min(), 1e-6)))), int(np.ceil(np.log10(max(errors.max(), 1e-6)))) + 1)
    )
    bar = {"title": {"text": error, "side": "right"}, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks]}
    figure.update_layout(coloraxis={"colorscale": look.ORDERED, "colorbar": bar})
    return Card("What each pair does to each layer", sentence, table, _upright(figure, len(profile)))


def pruning_card(profile: Profile, pruned: Sequence[tuple[Pair, ...]]) -> Card:
    """The pairs that are left in each layer."""
    sentence = (
        "Each line is a layer: pairs with a mark are left in the search, because no other has as few bits and as small "
        "an error there."
    )
    names = list(map(str, profile.pairs))
    kept = np.array([[pair in pairs for pair in profile.pairs] for pairs in pruned])
    table = pd.DataFrame({"layer": range(len(pruned)), **{n: kept[:, i] for i, n in enumerate(names)}})
    rows, columns = np.nonzero(kept)
    figure = go.Figure(
        go.Scatter(
            x=[names[c] for c in columns], y=[f"layer {r}" for r in rows], mode="markers",
            marker={"color": look.FRONT, "size": 9, "symbol": "square"}, hovertemplate="%{y}: %{x}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    return Card("The pairs that are left", sentence, table, _upright(figure, len(pruned)))


def groups_card(groups: Sequence[Group]) -> Card:
    """The layers that have their pair together."""
    sentence = "Each line is a group: its layers have the same pair, one of those it names."
    table = pd.DataFrame(
        {
            "group": [group.name for group in groups],
            "layers": [len(group.layers) for group in groups],
            "pairs": [", ".join(map(str, group.pairs)) for group in groups],
        }
    )
    return Card("Layers that go together", sentence, table)


_ERRORS = {
    "e_k": "the mean relative error of keys",
    "e_v": "the mean relative error of values",
    "e_a": "the mean error of attention's weights",
    "e_o": "the mean relative error of attention's output",
    "o_norm": "the error of attention's output relative to its norm",
    "fisher": "the KL divergence to be expected, in nats per token,",
}


def _of_layers(history: History, config: Any) -> dict[int, Pair]:
    """The pair of every decided layer."""
    found: dict[int, dict[str, int]] = {}
    for entry in history.meta["decisions"]:
        value = config[entry["name"]]
        group = of_mapping({entry["row"]: ["KV16"]})[0]
        pair = Pair.of(value) if entry["column"] == "pair" else None
        for layer in group.layers:
            both = {entry["column"]: int(value)} if pair is None else {"k": pair.k, "v": pair.v}
            found.setdefault(layer, {}).update(both)
    return {layer: Pair(**both) for layer, both in found.items()}


def _heat_map(bits: Any, names: list[str], columns: list[str], hovers: list[list[str]]) -> go.Figure:
    """Bits [lines, points] as colours, few bits dark."""
    places = {width: place for place, width in enumerate(WIDTHS)}
    n = len(WIDTHS)
    steps = [[(i + side) / n, colour] for i, colour in enumerate(look.ramp(n)) for side in (0, 1)]
    z = np.vectorize(places.__getitem__)(bits)
    figure = go.Figure(
        go.Heatmap(
            z=z, y=names, hovertext=hovers, hoverinfo="text", coloraxis="coloraxis", xgap=int(len(columns) <= 60)
        )
    )
    bar = {"title": {"text": "bits", "side": "right"}, "tickvals": list(range(n)), "ticktext": list(map(str, WIDTHS))}
    figure.update_layout(coloraxis={"colorscale": steps, "cmin": -0.5, "cmax": n - 0.5, "colorbar": bar})
    figure.update_xaxes(visible=False)
    return _upright(figure, len(names))


def _upright(figure: go.Figure, lines: int) -> go.Figure:
    """Line 0 on top, and as high as its lines need."""
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(height=int(min(max(16 * lines, 120), 1100)) + 80, margin={"t": 24})
    return figure
