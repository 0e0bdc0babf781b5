"""Measured allocations in one Parquet file, and what they say of the methods that chose them. Runs nothing.

A row is one thing that was measured: `problem`, `method`, `budget` ("" for all at once), `draw` and `order` say in
which unit; `kind`, `spent` (forward tokens so far), `cost`, `choice` (an option a decision) and `loss` say what. Those
of kind "held-out" have `within`, the budget they were chosen for, and `samples`, the loss of each sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from moopt import pareto
from moopt.bench import parquet

FloatArray = npt.NDArray[np.float64]

UNIT = ["problem", "method", "budget", "draw"]
"""What no two units of a file share."""
COLUMNS = [*UNIT, "order", "kind", "spent", "within", "cost", "loss", "choice", "samples"]
DRAWS = 2000
"""Bootstrap draws of an interval."""
MORE = 1.5
"""How many times what is looked at a method has to spend to have a line of its own at its end."""


class Gain(NamedTuple):
    """By what share one method's held-out loss is below another's, pooled over the draws both have.

    Attributes:
        pooled: Of the mean losses over all sequences and draws.
        median: The median of the draws' own shares.
        low: The 2.5% quantile of `pooled` where sequences are drawn again, the same ones for both and for all draws.
        high: The 97.5% quantile.
        draws: How many draws both have.
    """

    pooled: float
    median: float
    low: float
    high: float
    draws: int


def read(path: Path) -> pd.DataFrame:
    """The rows of a file; none if there is no file.

    Raises:
        StorageError: it is no such file.
    """
    return parquet.read(path, COLUMNS, "allocations")


def has(rows: pd.DataFrame, problem: str, method: str, budget: str, draw: int) -> bool:
    """Whether a unit is among rows."""
    own = (rows["problem"] == problem) & (rows["method"] == method) & (rows["budget"] == budget)
    return bool((own & (rows["draw"] == draw)).any())


def add(path: Path, unit: pd.DataFrame) -> None:
    """Put the rows of units into a file, whole or not at all; units that are there already are replaced."""

    def together() -> pd.DataFrame:
        before = read(path)
        if not len(before):
            return unit.sort_values([*UNIT, "order"])
        replaced = pd.MultiIndex.from_frame(before[UNIT]).isin(pd.MultiIndex.from_frame(unit[UNIT]))
        return pd.concat([before[~replaced], unit], ignore_index=True).sort_values([*UNIT, "order"])

    parquet.update(path, together)


def held_out(rows: pd.DataFrame, problem: str, method: str, within: str) -> dict[int, FloatArray]:
    """What a method's choices within a budget lost on each held-out sequence, [s], by draw."""
    own = rows[(rows["problem"] == problem) & (rows["kind"] == "held-out")]
    own = own[(own["method"] == method) & (own["within"] == within)]
    return {int(d): np.asarray(s, dtype=float) for d, s in zip(own["draw"], own["samples"], strict=True)}


def gain(ours: dict[int, FloatArray], theirs: dict[int, FloatArray]) -> Gain | None:
    """By what share our losses [s], by draw, are below theirs; None without a draw that both have."""
    draws = sorted(ours.keys() & theirs.keys())
    if not draws:
        return None
    a, b = (np.array([each[draw] for draw in draws]) for each in (ours, theirs))
    taken = np.random.default_rng(0).integers(a.shape[1], size=(DRAWS, a.shape[1]))
    drawn = 1 - a[:, taken].mean(axis=(0, 2)) / b[:, taken].mean(axis=(0, 2))
    low, high = np.quantile(drawn, [0.025, 0.975])
    each = 1 - a.mean(axis=1) / b.mean(axis=1)
    return Gain(float(1 - a.mean() / b.mean()), float(np.median(each)), float(low), float(high), len(draws))


def points(rows: pd.DataFrame, problem: str, method: str, draw: int) -> FloatArray:
    """The front of what a run evaluated, cost and loss, [n, 2]."""
    own = rows[(rows["problem"] == problem) & (rows["method"] == method) & (rows["draw"] == draw)]
    values = own[own["kind"] == "evaluate"][["cost", "loss"]].dropna().to_numpy(dtype=float)
    return values[pareto.nondominated(values)] if len(values) else values


def room(rows: pd.DataFrame, problem: str, method: str, within: str) -> float | None:
    """By what share the least loss that anything measured here has is below what a method found within a budget.

    Of the text that searches are measured by, and the median of the method's draws; None if one of both is missing.
    """
    own = rows[rows["problem"] == problem]
    amount = own[(own["method"] == "uniform") & (own["within"] == within)]["cost"].min()
    fitting = own[(own["kind"] == "evaluate") & (own["cost"] <= amount)]
    searched = fitting[(fitting["method"] == method) & (fitting["budget"] == within)]
    if not len(searched):
        return None
    return 1 - float(fitting["loss"].min() / searched.groupby("draw")["loss"].min().median())


def volumes(rows: pd.DataFrame, problem: str, tokens: Sequence[int]) -> pd.DataFrame:
    """The hypervolumes of whole fronts at some numbers of tokens, a line each: medians, as shares of the best there is.

    Of cost and loss, and of cost and the logarithm of the loss, which weighs all costs alike; up to the reference point
    of the uniform allocations. A method that spent more than all these numbers has a line at what it spent.

    Args:
        rows: What `read` gives.
        problem: Which problem.
        tokens: Where to look.
    """
    own = rows[(rows["problem"] == problem) & (rows["kind"] == "evaluate") & (rows["budget"] == "")]
    own = own.dropna(subset=["loss"])
    columns = ["method", "draws", "tokens", "volume", "volume of log loss"]
    uniform = own[[len(set(choice)) == 1 for choice in own["choice"]]]
    if not len(uniform):
        return pd.DataFrame(columns=columns)
    log = (False, True)
    corners = [pareto.reference_point(_losses(uniform, each)) for each in log]
    found = []
    for method, searched in own.groupby("method"):
        most = int(searched["spent"].max())
        for spent in sorted({*tokens, *([most] if most > MORE * max(tokens) else [])}):
            so_far = [search[search["spent"] <= spent] for _, search in searched.groupby("draw")]
            each = [[pareto.hypervolume(_losses(s, g), c) for g, c in zip(log, corners, strict=True)] for s in so_far]
            found.append([method, len(each), spent, *np.median(each, axis=0)])
    table = pd.DataFrame(found, columns=columns)
    table[columns[3:]] /= table[columns[3:]].max()
    return table.sort_values(["tokens", "volume of log loss"], ascending=[True, False], ignore_index=True)


def _losses(rows: pd.DataFrame, log: bool) -> FloatArray:
    loss = rows["loss"].to_numpy(dtype=float)
    return np.column_stack([rows["cost"].to_numpy(dtype=float), np.log(loss) if log else loss])


def dominated(ours: FloatArray, theirs: FloatArray) -> float:
    """The share of their points [k, 2] that one of ours [n, 2] equals or is better than."""
    covered = (ours[:, None] <= theirs[None]).all(axis=2).any(axis=0)
    return float(covered.mean())


def table(rows: pd.DataFrame, problem: str, against: str) -> pd.DataFrame:
    """A line each budget and method: draws, median held-out loss and its range, tokens, and how far `against` is below.

    Args:
        rows: What `read` gives.
        problem: Which problem.
        against: The method that the others are compared with.
    """
    own = rows[(rows["problem"] == problem) & (rows["kind"] == "held-out")]
    found = []
    for (within, method), chosen in own.groupby(["within", "method"]):
        ours, theirs = (held_out(rows, problem, name, str(within)) for name in (against, str(method)))
        better = gain(ours, theirs) if method != against else None
        losses = chosen["loss"]
        found.append({
            "budget": within, "method": method, "draws": len(chosen), "loss": losses.median(), "least": losses.min(),
            "most": losses.max(), "tokens": chosen["spent"].median(),
            f"{against} below": "" if better is None else f"{better.pooled:.1%} [{better.low:.1%}, {better.high:.1%}]",
        })  # fmt: skip
    columns = ["budget", "method", "draws", "loss", "least", "most", "tokens", f"{against} below"]
    return pd.DataFrame(found, columns=columns).sort_values(["budget", "loss"], ignore_index=True)


def picture(rows: pd.DataFrame, problem: str, path: Path) -> None:
    """Draw the held-out loss of every method's choices, a panel each budget, as one offline HTML file."""
    import plotly.express as px

    own = rows[(rows["problem"] == problem) & (rows["kind"] == "held-out")].sort_values(["within", "loss"])
    figure = px.strip(
        own, x="loss", y="method", color="method", facet_row="within", log_x=True, hover_data=["draw", "spent"],
        labels={"loss": "held-out loss of each draw's choice", "method": "", "within": "budget"},
        title=f"{problem}: the best within a budget", template="plotly_white",
    )  # fmt: skip
    figure.update_layout(showlegend=False, height=120 + 260 * own["within"].nunique())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True)
