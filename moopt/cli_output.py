"""What the command line prints: tables for people, JSON for programs. Standard output alone; runs nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from moopt.executors import WorkerState
    from moopt.history import History, Trial


SILENCE = 60
"""Seconds after which a run that says nothing is thought to be in trouble; a working one says something every five."""


def summary(history: History) -> dict[str, Any]:
    """How a study stands, as JSON."""
    states = [trial.state for trial in history.trials]
    identity = history.meta["identity"]
    found = history.front()
    return {
        "study": history.name,
        "algorithm": identity["algorithm"]["algorithm"],
        "seed": identity["seed"],
        "trials": {state: states.count(state) for state in ("complete", "failed", "running", "pruned")},
        "front_size": len(found),
        "hypervolume": history.hypervolume() if found else None,
        "tokens": history.tokens,
        "seconds": sum(event.seconds for event in history.events),
        "run": dict(history.pulse),
        "workers": [_worker(worker) for worker in history.workers],
        "under_way": [job.doing for job in history.under_way()],
    }


def _worker(worker: WorkerState) -> dict[str, Any]:
    return {
        "name": worker.name,
        "place": worker.place,
        "doing": worker.doing,
        "trial": None if worker.job is None else worker.job.trial,
        "seconds": worker.seconds,
        "done": worker.done,
        "failed": worker.failed,
    }


def print_run(found: Mapping[str, Any], runs: bool | None) -> None:
    """What runs a study, given its `summary` and whether that goes on (None: unknown), and what each worker does."""
    run = found["run"]
    if not run:
        return
    ago = max(0, round((datetime.now(UTC) - datetime.fromisoformat(run["at"])).total_seconds()))
    where = f"process {run['process']} on {run['host']}"
    if "ended" in run:
        print(f"{found['study']}: not running; the last run, {where}, {run['ended']} {ago} s ago.")
        return
    if runs is False:
        print(
            f"{found['study']}: not running; {where} was killed, or its machine went down; last heard of {ago} s ago. "
            "Run it again and it goes on."
        )
        return
    if runs is None and ago > SILENCE:
        print(f"{found['study']}: {where} has said nothing for {ago} s; it is in a long evaluation, stuck or gone.")
    else:
        print(f"{found['study']}: running, {where}, last heard of {ago} s ago.")
    if found["workers"]:
        columns = ("worker", "place", "does", "for seconds", "done", "failed")
        rows = [
            (w["name"], w["place"], w["doing"], round(w["seconds"] + ago, 1), w["done"], w["failed"])
            for w in found["workers"]
        ]
        print_table(columns, rows, "")
    elif found["under_way"]:
        print(f"Under way: {', '.join(found['under_way'])}.")


def front_points(history: History) -> dict[str, Any]:
    """The front, as JSON."""

    def point(trial: Trial) -> dict[str, Any]:
        measures = history.measures.items()
        measured = {purpose: dict(e.values) for (number, purpose), e in measures if number == trial.number}
        return {
            "trial": trial.number,
            "baseline": trial.label,
            "values": trial.values,
            "measured": measured,
            "config": trial.config,
        }

    objectives = [{"name": o.name, "direction": o.direction, "unit": o.unit} for o in history.objectives]
    front = [point(trial) for trial in history.front()]
    return {"objectives": objectives, "front": front, "never_worse": _verdict(history)}


def _verdict(history: History) -> dict[str, Any] | None:
    """What the rule of `moopt.never_worse` did, as JSON; null where the problem has no validation data."""
    if (found := history.verdict()) is None:
        return None
    by = [{"trial": number, "by": baseline.number} for number, baseline in found.replaced.items()]
    return {"points": found.points, "replaced": by, "unchecked": found.unchecked}


def print_front(history: History) -> None:
    """The front as a table: objectives, constraints, what was measured on other data, what baselines replaced."""
    points = history.front()
    if not points:
        print(f"{history.name}: no trial is complete and feasible yet.")
        return
    frame = history.frame(points).drop(columns=["state", "seconds", "tokens"]).reset_index()
    labels = {o.name: o.label for o in history.objectives}
    rows = [tuple(row) for row in frame.itertuples(index=False)]
    title = f"{history.name}: {len(points)} points on the front of {len(history.trials)} trials"
    print_table([labels.get(str(column), str(column)) for column in frame.columns], rows, title)
    if verdict := history.verdict():
        print(verdict)


def print_needs(needs: Mapping[str, Any], title: str) -> None:
    """A plan as a table: bare values, mappings with `value`, `unit` and `how`, or parts by name."""
    rows = []
    for name, need in needs.items():
        if not isinstance(need, Mapping):
            rows.append((name, _text(need), ""))
        elif "value" in need:
            rows.append((name, f"{_text(need['value'])} {need.get('unit', '')}".strip(), need.get("how", "")))
        else:
            rows.append((name, ", ".join(f"{part} {_text(value)}" for part, value in need.items()), ""))
    how = any(row[2] for row in rows)
    columns = ("what", "how much", "how it was found")
    print_table(columns if how else columns[:2], rows if how else [row[:2] for row in rows], title)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str) -> None:
    """A table; without colours and as wide as it needs in a pipe."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 10_000)
    table = Table(box=box.SIMPLE_HEAD if terminal else None)
    for i, column in enumerate(columns):
        numbers = all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(escape(column), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row))
    print(title)
    console.print(table)


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def print_json(document: Mapping[str, Any]) -> None:
    """A document, numpy's numbers as plain ones."""
    print(json.dumps(document, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    """A numpy number or array as JSON has it; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
