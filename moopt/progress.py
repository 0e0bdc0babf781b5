"""The live display while a search runs: a panel on a terminal, plain lines in a pipe. Decides nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moopt.executors import WorkerState
from moopt.history import Event, History, Trial

LINE_EVERY = 10.0
"""Seconds between two plain lines."""

FRAME_EVERY = 0.5
"""Seconds after which the figures of the panel are computed again."""


@dataclass(frozen=True)
class Comparison:
    """What the search has at no more than a baseline's size: `before` is the baseline's value, `after` the best one."""

    baseline: str
    objective: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """The relative change, -0.25 for a quarter less."""
        return self.after / self.before - 1 if self.before else 0.0


@dataclass
class Figures:
    """How a run stands. Rates are those of this run; what earlier runs found counts as done."""

    trials: int | None
    done: int = 0
    failed: int = 0
    front: int = 0
    hypervolume: float | None = None
    tokens: int = 0
    rate: float = 0.0
    left: float | None = None
    doing: str = "setting up"
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def progress(self) -> str:
        """The trials done, of how many if that is known."""
        return f"{self.done} trials" if self.trials is None else f"{self.done} of {self.trials} trials"

    def found(self) -> list[str]:
        """What was found and what it cost, one piece of text a figure."""
        parts = [f"front of {self.front}"] if self.front else []
        parts += [f"hypervolume {self.hypervolume:.5g}"] if self.hypervolume is not None else []
        parts += [f"{_count(self.tokens)} forward tokens, {_count(self.rate)} a second"] if self.tokens else []
        return parts

    def __str__(self) -> str:
        failed = [f"{self.failed} failed"] if self.failed else []
        left = [f"about {_clock(self.left)} left"] if self.left else []
        parts = [self.progress, *failed, *self.found(), *left]
        return f"{self.doing}: {', '.join(parts)}"


class Display:
    """Shows a run as it goes: give what its `with` returns to `Study.run(watch=...)`.

    Example:
        with Display(trials=200) as watch:
            study.run(trials=200, watch=watch)

    Args:
        trials: How many trials the run goes up to; None leaves out the time left.
        file: Where to show it; standard error, so that standard output keeps the results alone.
        clock: Seconds, for the rates.
    """

    def __init__(
        self, trials: int | None = None, file: TextIO | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._console = Console(file=file or sys.stderr, soft_wrap=True, highlight=False)
        self._clock = clock
        self._figures = Figures(trials)
        self._latest: tuple[History, Event] | None = None
        self._seconds: list[float] = []
        self._tokens = 0
        self._live: Live | None = None
        self._started = self._shown = clock()
        self._phase = ""

    def __enter__(self) -> Display:
        self._started = self._shown = self._clock()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._panel, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._latest is not None:
            self._update()
            self._figures.doing, self._figures.left = ("done" if error is None else "stopped"), None
            self._line()

    def __call__(self, history: History, event: Event) -> None:
        """Takes note of an event."""
        self._latest = history, event
        self._tokens += event.tokens
        if event.job.kind == "evaluate":
            self._seconds.append(event.seconds)
        phase = event.job.kind
        due = self._clock() - self._shown >= (FRAME_EVERY if self._live else LINE_EVERY)
        if not due and phase == self._phase:
            return
        self._phase = phase
        self._update()
        if self._live is None:
            self._line()

    def _update(self) -> None:
        assert self._latest is not None
        history, event = self._latest
        self._shown = self._clock()
        spent = self._shown - self._started
        self._figures = measured(history, self._figures.trials)
        self._figures.doing = _doing(history, event)
        self._figures.rate = self._tokens / spent if spent else 0.0
        recent = self._seconds[-20:]
        remaining = max((self._figures.trials or 0) - self._figures.done, 0)
        left = remaining * median(recent) / max(len(history.workers), 1) if recent else 0.0
        self._figures.left = left if left >= 1 else None

    def _line(self) -> None:
        self._console.print(f"[{_clock(self._shown - self._started)}] {self._figures}", markup=False)

    def _panel(self) -> RenderableType:
        figures = self._figures
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=figures.trials, completed=figures.done, width=30, pulse=figures.trials is None),
            figures.progress,
            Text(f"{figures.failed} failed" if figures.failed else "", style="red"),
            f"{_clock(self._clock() - self._started)} so far",
            f"about {_clock(figures.left)} left" if figures.left else "",
        )
        facts = [f"{figures.doing} ...", *figures.found()]
        workers = self._latest[0].workers if self._latest else ()
        return Group(bar, Text(" · ".join(facts), style="dim"), *_beaten(figures.comparisons), *_at_work(workers))


def measured(history: History, trials: int | None) -> Figures:
    """How a study stands, from what it has found so far."""
    finished = [trial for trial in history.trials if trial.state in ("complete", "failed")]
    front = history.front()
    return Figures(
        trials,
        done=len(finished),
        failed=sum(trial.state == "failed" for trial in finished),
        front=len(front),
        hypervolume=history.hypervolume() if front else None,
        tokens=history.tokens,
        comparisons=comparisons(history),
    )


def comparisons(history: History) -> list[Comparison]:
    """Each given baseline against the best trial that is no larger; empty unless just two objectives, one known."""
    known = [o for o in history.objectives if o.known]
    others = [o for o in history.objectives if not o.known]
    if len(known) != 1 or len(others) != 1:
        return []
    size, quality = known[0], others[0]
    trials = history.feasible()

    def best(baseline: Trial) -> float:
        bound = baseline.values[size.name] * size.sign
        rivals = [t.values[quality.name] for t in trials if t.values[size.name] * size.sign <= bound]
        return min(rivals, key=lambda value: value * quality.sign)

    given = [t for t in trials if t.label is not None and not t.label.startswith("knapsack")]
    given.sort(key=lambda t: t.values[size.name])
    return [Comparison(str(t.label), quality.name, t.values[quality.name], best(t)) for t in given]


def _beaten(found: Sequence[Comparison]) -> list[RenderableType]:
    """A row for every baseline that the search has improved on at no larger size."""
    better = [c for c in found if c.after != c.before]
    if not better:
        return []
    table = Table.grid(padding=(0, 2))
    for c in better:
        row = (c.objective, f"{c.before:.3g}", f"-> {c.after:.3g}")
        table.add_row(f"no larger than {c.baseline}", *row, Text(f"{c.change:+.0%}", style="green"))
    return [table]


def _at_work(workers: Sequence[WorkerState]) -> list[RenderableType]:
    """A row for every worker."""
    if not workers:
        return []
    table = Table.grid(padding=(0, 2))
    for worker in workers:
        busy = f"{worker.doing}, {_clock(worker.seconds)}" if worker.job else worker.doing
        failed = Text(f"{worker.failed} failed" if worker.failed else "", style="red")
        table.add_row(Text(worker.name), Text(worker.place, style="dim"), busy, f"{worker.done} done", failed)
    return [table]


def _doing(history: History, event: Event) -> str:
    if event.job.kind == "measure":
        purpose = str(event.job.fidelity.batch)
        return f"measuring the front ({purpose}, {sum(p == purpose for _, p in history.measures)} done)"
    return "estimating sensitivities" if event.job.kind == "sensitivity" else "searching"


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float | None) -> str:
    whole = int(seconds or 0)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
