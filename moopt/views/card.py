"""The contract of a card: what a view of a study shows, wherever it is shown. Draws nothing and serves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go

from moopt.history import History
from moopt.problem import Objective


@dataclass(frozen=True)
class Card:
    """One view of a study, for the dashboard, a notebook and the report alike.

    Attributes:
        title: A few words.
        sentence: One sentence that says what is shown and how to read it, to someone who has never seen the docs.
        table: The figures behind the picture, one row a thing, columns named with their units.
        figure: The picture, or None for a table alone. It names no width, and leaves text and grid colours to the
            templates of `moopt.views.look`. Points that stand for trials have their numbers as `customdata`, a heat
            map's columns as `meta["columns"]`: what one selects in one picture is selected in all.
        reason: Why the card does not apply to this study yet; empty for a card that does.
    """

    title: str
    sentence: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    figure: go.Figure | None = None
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Whether there is anything to show."""
        return not self.reason

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What a notebook shows where a cell ends with the card."""
        from moopt.report.notebook import bundle

        return bundle([self])


View = Callable[[History], Card | None]
"""What the entry point group `moopt.views` names: gets a study's history and gives a card, or None where it is not for
that study; it never raises."""


def nothing_yet(history: History) -> str:
    """Why a study has no complete and feasible trial to show; empty if it has one."""
    if history.feasible():
        return ""
    states = [trial.state for trial in history.trials]
    if not states:
        return "No trial has been started yet."
    if complete := states.count("complete"):
        return f"None of the {complete} complete trials satisfies the constraints."
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("running", "failed", "pruned") if s in states)
    return f"No trial is complete yet: {counts}."


def front_table(history: History, objectives: Sequence[Objective]) -> pd.DataFrame:
    """The front's points by some objectives, named with their units, and their trials."""
    table = history.frame(history.front())[[o.name for o in objectives]]
    return table.rename(columns={o.name: o.label for o in objectives}).reset_index(names="trial")
