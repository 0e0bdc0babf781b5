"""What `moopt proxies` finds out: how well each proxy ranks measured allocations, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moopt import ranking
from moopt.cli_targets import TargetError, plugin, settings, study
from moopt.ranking import Measured

if TYPE_CHECKING:
    import pandas as pd

    from moopt.problem import Problem

INSTALL = "pip install 'moopt[bench]'"
DEFAULT = "bit-allocation"
"""The problem whose own bench is taken where none is named."""


def subject(target: str | None, path: Path | None, changes: Sequence[str]) -> tuple[Problem, Measured]:
    """A problem and its measured allocations.

    Args:
        target: Whose proxies; None: the problem that the bench was made with.
        path: The bench; None: the one that comes with bit allocation.
        changes: What --set says.

    Raises:
        TargetError: there is no such target or bench, or they do not fit.
    """
    overrides = settings(changes)
    bench = read_bench(plugin(DEFAULT).proxy_bench if path is None else path)
    made_with = bench.attrs.get("arguments", {}) if target is None else {}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in made_with.items()}
    problem = study(target or DEFAULT, arguments | overrides).problem
    return problem, measured(bench, problem)


def read_bench(path: Path) -> pd.DataFrame:
    """A table of measured allocations, as `studies/proxy_bench.py` writes it; its `attrs` say of which problem.

    Raises:
        TargetError: there is none, or it is something else.
    """
    import pandas as pd

    if not path.is_file():
        raise TargetError(f"There is no file {path}; studies/proxy_bench.py makes such a table.")
    try:
        found = pd.read_parquet(path)
    except ImportError as error:
        raise TargetError(f"Reading {path.name} needs pyarrow: {INSTALL}.") from error
    except Exception as error:
        raise TargetError(f"{path} is no Parquet file: {error}") from error
    if lacking := [column for column in ("size", "kl") if column not in found.columns]:
        raise TargetError(f"{path} has no column {lacking[0]!r}; studies/proxy_bench.py makes a table that has.")
    return found


def measured(bench: pd.DataFrame, problem: Problem) -> Measured:
    """The allocations of a bench as candidates of a problem.

    Raises:
        TargetError: they are of another space.
    """
    options = []
    for name in problem.space:
        values = list(getattr(problem.space[name], "values", ()))
        if name not in bench.columns or not set(bench[name]) <= set(values):
            raise TargetError(
                f"The measured allocations do not fit {type(problem).__name__}: they have no {name} of {values}. "
                "Name the problem they were made with, or make others with studies/proxy_bench.py and give --bench."
            )
        options.append(bench[name].map(values.index))
    return Measured(np.stack(options, 1), bench["kl"].to_numpy(float), bench["size"].to_numpy(float))


def asked(problem: Any, names: str | None) -> list[str]:
    """The proxies to look at: those named, with commas between, or all that fit the problem.

    Raises:
        ProblemError: there is no such proxy.
        TargetError: the problem has no decisions that proxies know.
    """
    from moopt.backend import proxies
    from moopt.backend.workbench import request

    if not hasattr(problem, "decided"):
        raise TargetError(f"{type(problem).__name__} does not allocate bits, so it has no proxies.")
    if names is None:
        return proxies.fitting(request(problem, 0), problem.is_language, problem.stream is True)
    return [proxies.named(name.strip()).name for name in names.split(",")]


def ranked(
    problem: Any, known: Measured, names: Sequence[str], tokens: int | None, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Each proxy's correlations and cost, best first; says what is not in the cache and has to be made."""
    from moopt.backend import proxies
    from moopt.backend.proxies import stored
    from moopt.problem import Fidelity

    rows = []
    for name in names:
        text = proxies.named(name).usual if tokens is None else tokens
        cost = problem.forward_tokens("sensitivity", Fidelity(text, name))
        if not stored.place(problem, name, text).exists():
            say(f"{name}: making its table, up to {cost} forward tokens ...")
        predicted = known.predicted(stored.table(problem, name, text))
        rows.append(
            {
                "proxy": name,
                "overall": ranking.overall(known, predicted),
                "by_size": ranking.within(known, predicted),
                "within_sizes": ranking.mean_within(known, predicted),
                "forward_tokens": cost,
            }
        )
    return sorted(rows, key=lambda row: -row["within_sizes"].value)


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and rows of a printed table."""
    sizes = list(rows[0]["by_size"])
    columns = ["proxy", *(f"{size:g} bits" for size in sizes), "mean of sizes", "all sizes", "forward tokens"]
    shown = [
        (
            row["proxy"],
            *(str(row["by_size"][size]) for size in sizes),
            str(row["within_sizes"]),
            str(row["overall"]),
            row["forward_tokens"],
        )
        for row in rows
    ]
    return columns, shown


def records(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same for programs."""
    from dataclasses import asdict

    return [
        {
            **row,
            "overall": asdict(row["overall"]),
            "within_sizes": asdict(row["within_sizes"]),
            "by_size": {str(size): asdict(interval) for size, interval in row["by_size"].items()},
        }
        for row in rows
    ]
