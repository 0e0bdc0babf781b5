"""Which cards are shown: those that are named, or all of a study's. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence

from moopt.errors import ReportError
from moopt.history import History
from moopt.views import Card, views


def chosen(history: History, names: Sequence[str] = ()) -> dict[str, Card]:
    """Cards by name, in the order asked for; where none is named every card of the study.

    Raises:
        ReportError: a study of this kind has no card of that name; says which it has.
    """
    there = views(history)
    found = {name: there[name](history) for name in names or there if name in there}
    cards = {name: card for name, card in found.items() if card is not None}
    if missing := [name for name in names if name not in cards]:
        has = ", ".join(name for name, view in there.items() if name in cards or view(history) is not None)
        raise ReportError(f"{history.name!r} has no card {missing[0]!r}; it has {has}.")
    return cards
