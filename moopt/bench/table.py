"""The table of a benchmark: shares at three budgets, distance, seconds, and whether a difference is more than luck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from moopt.bench import scores
from moopt.bench.races import Race
from moopt.bench.scores import Target
from moopt.bench.units import Unit
from moopt.errors import StudyError

SHARES = ("share at N/4", "share at N/2", "share at N")


def units_frame(races: Sequence[Race], found: Sequence[Unit]) -> pd.DataFrame:
    """One row a unit: race, algorithm, what it took, seed, the shares, IGD+ at the end, seconds a suggestion."""
    rows: list[dict[str, Any]] = []
    for race in races:
        own = [unit for unit in found if unit.race == race.name]
        if own:
            target = scores.target(race, own)
            rows += [_scored(race, unit, target) for unit in own]
    return pd.DataFrame(rows)


def _scored(race: Race, unit: Unit, target: Target) -> dict[str, Any]:
    budgets = (race.evaluations // 4, race.evaluations // 2, race.evaluations)
    shares = {name: target.share(unit.front(n)) for name, n in zip(SHARES, budgets, strict=True)}
    return {
        "race": race.name, "algorithm": unit.algorithm, "took": unit.took, "seed": unit.seed, **shares,
        "IGD+": target.distance(unit.front(race.evaluations)),
        "seconds a suggestion": unit.seconds / max(len(unit.values), 1),
        "of the best known": not target.exact,
    }  # fmt: skip


def summary(frame: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """One row a race and algorithm: medians over seeds, the interquartile range of the last share, and p values.

    Args:
        frame: What `units_frame` gives.
        against: The algorithm that all others are compared with by Wilcoxon's signed-rank test on the share at N,
            paired by seed; the p values are Holm's over the whole table. None leaves them out.

    Raises:
        StudyError: there is no unit, or none of `against`.
    """
    if frame.empty:
        raise StudyError("No unit is finished yet, so there is nothing to tabulate.")
    grouped = frame.groupby(["race", "algorithm"], sort=False)
    table = grouped[[*SHARES, "IGD+", "seconds a suggestion"]].median()
    table.insert(3, "IQR", grouped[SHARES[-1]].quantile(0.75) - grouped[SHARES[-1]].quantile(0.25))
    table.insert(0, "seeds", grouped.size())
    table.insert(0, "took", grouped["took"].agg(lambda taken: ", ".join(sorted({*taken} - {""}))))
    table["of the best known"] = grouped["of the best known"].first()
    if against is not None:
        table["p"] = pd.Series(_p_values(frame, against), dtype=float)
    return table.reset_index()


def _p_values(frame: pd.DataFrame, against: str) -> dict[tuple[str, str], float]:
    """Holm's p value for each race and algorithm beside `against`; those with fewer than two common seeds left out."""
    if against not in set(frame["algorithm"]):
        raise StudyError(
            f"No unit of {against!r} is finished; the algorithms are {', '.join(frame['algorithm'].unique())}."
        )
    found = {}
    for race, own in frame.groupby("race", sort=False):
        shares = own.pivot(index="seed", columns="algorithm", values=SHARES[-1])
        for name in shares.columns.drop(against, errors="ignore") if against in shares else ():
            pairs = shares[[name, against]].dropna()
            if len(pairs) > 1:
                differences = (pairs[name] - pairs[against]).to_numpy()
                found[str(race), str(name)] = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return dict(zip(found, holm(list(found.values())), strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding at the level (Holm 1979)."""
    p = np.array(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    found: list[float] = adjusted.tolist()
    return found


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The summary as text, cell by cell; shares of the best known, where the front is not, end in an asterisk.

    What an algorithm took stands behind it where that has another name.
    """
    found = table.drop(columns=["of the best known", "took"]).astype(object)
    chosen = zip(table["algorithm"], table["took"], strict=True)
    found["algorithm"] = [f"{name} ({took})" if took not in ("", name) else name for name, took in chosen]
    stars = np.where(table["of the best known"], "*", "")
    for name in SHARES:
        found[name] = [f"{value:.3f}{star}" for value, star in zip(table[name], stars, strict=True)]
    for name in table.columns.intersection(["IQR", "IGD+", "seconds a suggestion", "p"]):
        found[name] = ["" if np.isnan(value) else f"{value:.2g}" for value in table[name]]
    return found


def text(table: pd.DataFrame) -> str:
    """The summary as plain text."""
    note = "\n* of the best that all searches of the race found" if table["of the best known"].any() else ""
    return shown(table).to_string(index=False) + note
