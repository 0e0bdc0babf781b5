"""What the command `moopt bench` does: runs races, and leaves their table and their plots beside their units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moopt.bench import plots, runner, table
from moopt.bench.races import Race
from moopt.bench.units import Unit
from moopt.errors import AlgorithmError


def run(
    races: Sequence[Race], folder: Path, workers: int, against: str | None, say: Callable[[str], None]
) -> pd.DataFrame:
    """Run what is not stored yet, write `units.csv`, `table.csv` and `plots.html`, and return the summary.

    Raises:
        AlgorithmError: there is no algorithm of a name, or `against` is none of those that run.
    """
    names = list(dict.fromkeys(name for race in races for name in race.algorithms))
    if against is not None and against not in names:
        raise AlgorithmError(f"Got --against {against}; expected one of the algorithms that run: {', '.join(names)}.")

    def watch(unit: Unit, done: int, total: int) -> None:
        say(f"{done}/{total} {unit.race}, {unit.algorithm}, seed {unit.seed}: {unit.seconds:.1f} s of suggesting")

    found = runner.run(races, folder, workers, watch)
    frame = table.units_frame(races, found)
    summary = table.summary(frame, against)
    frame.to_csv(folder / "units.csv", index=False)
    summary.to_csv(folder / "table.csv", index=False)
    plots.write(races, found, folder / "plots.html")
    return summary


def records(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The summary as JSON: None where there is no value."""
    found = summary.astype(object).where(summary.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]
