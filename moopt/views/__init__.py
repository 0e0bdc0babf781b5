"""Cards: what a study shows, each a title, a sentence, a table and a figure. No server and no models in it.

A package adds its own through the entry point group `moopt.views`, whose objects are `View`s; they give None for
studies that they are not for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from moopt.history import History
from moopt.views.card import Card, View
from moopt.views.compared import comparison
from moopt.views.decisions import decisions_card
from moopt.views.elites import elites_card
from moopt.views.failures import failures_card
from moopt.views.front import front_card
from moopt.views.held_out import held_out_card
from moopt.views.hypervolume import hypervolume_card
from moopt.views.importance import importance_card
from moopt.views.pairs import pairs_card
from moopt.views.parallel import parallel_card
from moopt.views.predictions import predictions_card
from moopt.views.run import run_card
from moopt.views.shipping import shipping_card
from moopt.views.solid import solid_card
from moopt.views.spending import spending_card
from moopt.views.uniform import uniform_card
from moopt.views.workers import workers_card

__all__ = ["Card", "View", "cards", "comparison", "views"]

GROUP = "moopt.views"
VIEWS: tuple[View, ...] = (
    shipping_card, front_card, solid_card, pairs_card, parallel_card, decisions_card, importance_card, uniform_card,
    held_out_card, hypervolume_card, predictions_card, spending_card, workers_card, failures_card,
)  # fmt: skip
OF_ALGORITHM: Mapping[str, tuple[View, ...]] = {"MAPElites": (elites_card,)}
"""Cards for studies of one algorithm alone."""

logger = logging.getLogger("moopt")


def cards(history: History) -> list[Card]:
    """Every card of a study, moopt's own and the plug-ins', the settings last."""
    return [card for view in views(history).values() if (card := view(history)) is not None]


def views(history: History) -> dict[str, View]:
    """What draws the cards of a study, by names that stay the same; each gives None where it does not apply."""
    algorithm = history.meta.get("identity", {}).get("algorithm", {}).get("algorithm", "")
    own = [*VIEWS, *OF_ALGORITHM.get(algorithm, ())]
    plugged = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    found: dict[str, View] = {view.__name__.removesuffix("_card"): view for view in own}
    found |= {f"plugin-{point.name}": partial(_from_plugin, point) for point in plugged} | {"run": run_card}
    return {name: partial(_drawn, name, view) for name, view in found.items()}


def _drawn(name: str, view: View, history: History) -> Card | None:
    """A card; one that fails says so in its place, and the others are shown all the same."""
    try:
        return view(history)
    except Exception as error:
        logger.warning("The view %r of %r failed.", name, history.name, exc_info=error)
        return Card(name, "", reason=f"This card cannot be drawn: {type(error).__name__}: {error}.")


def _from_plugin(point: EntryPoint, history: History) -> Card | None:
    """A plug-in's card; a plug-in that fails says so in its place, and the others are shown all the same."""
    try:
        card = point.load()(history)
        if card is None or isinstance(card, Card):
            return card
        problem = f"it gave {type(card).__name__}, expected moopt.views.Card or None"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    logger.warning("The view %r of %s failed: %s.", point.name, point.value, problem)
    return Card(point.name, "A card of a plug-in.", reason=f"The plug-in {point.value} failed: {problem}.")
