"""Pictures of a benchmark: attained surfaces of two objectives, and the share of the hypervolume over evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import moocore
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from moopt.bench import scores
from moopt.bench.races import Race
from moopt.bench.scores import Target
from moopt.bench.units import Unit
from moopt.views import look

FloatArray = npt.NDArray[np.float64]

STEPS = 40
"""Numbers of evaluations a curve is drawn at."""


def write(races: Sequence[Race], found: Sequence[Unit], path: Path) -> None:
    """Every picture of the races that have units, in one HTML file that needs no network."""
    figures = list(_figures(races, found))
    parts = [f.to_html(full_html=False, include_plotlyjs=i == 0, div_id=f"figure-{i}") for i, f in enumerate(figures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>moopt bench</title>'
    path.write_text(f"{head}<body>{''.join(parts)}</body></html>\n")


def _figures(races: Sequence[Race], found: Sequence[Unit]) -> Iterator[go.Figure]:
    for race in races:
        own = [unit for unit in found if unit.race == race.name]
        if own:
            target = scores.target(race, own)
            yield progress(race, own, target)
            if len(target.reference) == 2:
                yield attainment(race, own, target)


def progress(race: Race, found: Sequence[Unit], target: Target) -> go.Figure:
    """The share of the hypervolume over the evaluations: the median over seeds, and the middle half."""
    spent = np.unique(np.linspace(1, race.evaluations, STEPS).astype(int))
    figure = _figure(race, "evaluations", f"share of the hypervolume{'' if target.exact else ' of the best known'}")
    for name, colour, units in _by_algorithm(race, found):
        shares = np.array([[target.share(unit.front(n)) for n in spent] for unit in units])
        low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
        band = {"x": [*spent, *spent[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "opacity": 0.15}
        figure.add_scatter(**band, line={"width": 0}, fillcolor=colour, hoverinfo="skip", showlegend=False)
        figure.add_scatter(x=spent, y=middle, name=name, mode="lines", line={"color": colour})
    return figure


def attainment(race: Race, found: Sequence[Unit], target: Target) -> go.Figure:
    """What half of the searches attained of two objectives (Grunert da Fonseca et al. 2001), and the front if known."""
    first, second = race.problem.objectives
    figure = _figure(race, first.label, second.label)
    signs = np.array([first.sign, second.sign])
    for name, colour, units in _by_algorithm(race, found):
        line = median_attainment([unit.front(race.evaluations) for unit in units]) * signs
        if not len(line):
            continue
        figure.add_scatter(x=line[:, 0], y=line[:, 1], name=name, mode="lines", line={"color": colour, "shape": "hv"})
    if target.exact:
        best = target.best[np.argsort(target.best[:, 0])] * signs
        figure.add_scatter(
            x=best[:, 0], y=best[:, 1], name="front", mode="lines", line={"color": "black", "dash": "dot"}
        )
    return figure


def median_attainment(sets: Sequence[FloatArray]) -> FloatArray:
    """The corners, by the first objective, that half of the sets [n, 2] or more dominate, [k, 2]; some may be empty."""
    found, half = [each for each in sets if len(each)], (len(sets) + 1) // 2
    if len(found) < half:
        return np.zeros((0, 2))
    owner = np.repeat(np.arange(len(found)) + 1, [len(each) for each in found])
    surface = moocore.eaf(np.concatenate(found), owner, percentiles=[100 * half / len(found)])[:, :2]
    return np.asarray(surface[np.argsort(surface[:, 0])], dtype=float)


def _by_algorithm(race: Race, found: Sequence[Unit]) -> Iterator[tuple[str, str, list[Unit]]]:
    for i, name in enumerate(race.algorithms):
        units = [unit for unit in found if unit.algorithm == name]
        if units:
            yield name, look.UNORDERED[i % len(look.UNORDERED)], units


def _figure(race: Race, x: str, y: str) -> go.Figure:
    title = f"{race.name}: {race.evaluations} evaluations, {len(race.seeds)} seeds"
    return go.Figure(layout={"title": title, "xaxis_title": x, "yaxis_title": y, "template": "plotly_white"})
