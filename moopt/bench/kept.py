"""Finished units in one Parquet file that is kept with the code: a benchmark goes on where an earlier one ended.

A folder of units is what a run works in; this is what outlives it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from moopt.bench import parquet, units
from moopt.bench.units import Unit

KEY = ["race", "algorithm", "seed"]
"""What no two units of a file share."""


def read(path: Path) -> list[Unit]:
    """The units of a file; none if there is no file.

    Raises:
        StorageError: it is no such file.
    """
    rows = parquet.read(path, [field.name for field in fields(Unit)], "units of a benchmark").to_dict("records")
    return [_unit({str(name): value for name, value in row.items()}) for row in rows]


def restore(path: Path, folder: Path) -> int:
    """Put the units of a file into a folder, where that has none of theirs; how many were put there."""
    missing = [each for each in read(path) if units.load(folder, each.race, each.algorithm, each.seed) is None]
    for each in missing:
        units.save(folder, each)
    return len(missing)


def add(path: Path, found: Iterable[Unit]) -> None:
    """Put units into a file, in place of those of the same search; whole or not at all."""
    new = list(found)

    def together() -> pd.DataFrame:
        frame = pd.DataFrame([_row(each) for each in [*read(path), *new]], columns=[f.name for f in fields(Unit)])
        return frame.drop_duplicates(KEY, keep="last").sort_values(KEY)

    if new:
        parquet.update(path, together)


def _row(unit: Unit) -> dict[str, object]:
    """What differs from the values alone is stored of the truth."""
    same = unit.truth == unit.values
    arrays = {"values": unit.values, "truth": None if same else unit.truth, "believed": unit.believed}
    flat = {name: None if each is None else np.ravel(each).tolist() for name, each in arrays.items()}
    return {**asdict(unit), **flat, "identity": json.dumps(unit.identity, sort_keys=True)}


def _unit(row: dict[str, object]) -> Unit:
    spent, identity = np.asarray(row["spent"]).tolist(), json.loads(str(row["identity"]))
    arrays = {
        name: None if row[name] is None else np.reshape(row[name], (len(spent), -1)).tolist()  # type: ignore[call-overload]
        for name in ("values", "truth", "believed")
    }
    arrays["truth"] = arrays["truth"] or arrays["values"]
    violations = np.asarray(row["violations"]).tolist()
    return Unit(**{**row, **arrays, "spent": spent, "violations": violations, "identity": identity})
