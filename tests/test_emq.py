"""Evolving a proxy: it finds a hidden combination, repeats itself, and drops what gives NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moopt import emq, ranking
from moopt.emq import Genome
from moopt.errors import AlgorithmError
from moopt.ranking import FloatArray, Measured

Setting = tuple[dict[str, FloatArray], Measured]


@pytest.fixture(scope="module")
def setting() -> Setting:
    """Losses that follow weight * gradient, neither of them alone."""
    rng = np.random.default_rng(0)
    tables = {name: rng.lognormal(0, 1.5, (10, 4)) for name in ("weight", "gradient", "noise")}
    options = rng.integers(4, size=(80, 10))
    hidden = Measured(options, np.zeros(80), np.repeat([1.0, 2.0], 40))
    return tables, replace(hidden, losses=hidden.predicted(tables["weight"] * tables["gradient"]))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emq, "GENERATIONS", 12)


def test_it_beats_every_input_on_unseen_candidates(setting: Setting) -> None:
    tables, measured = setting
    training, unseen = measured.part(np.arange(0, 80, 2)), measured.part(np.arange(1, 80, 2))
    genome, fitness = emq.evolve(tables, training, seed=0)
    single = max(ranking.fitness(unseen, unseen.predicted(t)) for t in tables.values())
    assert fitness == ranking.fitness(training, training.predicted(genome.table(tables)))
    assert ranking.fitness(unseen, unseen.predicted(genome.table(tables))) > single + 0.1


def test_equal_seeds_give_equal_genomes(setting: Setting) -> None:
    assert emq.evolve(*setting, seed=3) == emq.evolve(*setting, seed=3)


def test_genomes_that_give_nan_are_dropped(setting: Setting) -> None:
    tables, measured = setting
    genome, _ = emq.evolve({**tables, "broken": np.full((10, 4), np.nan)}, measured, seed=0)
    assert "broken" not in genome.inputs
    with pytest.raises(AlgorithmError, match="Nothing that is made of broken is finite"):
        emq.evolve({"broken": np.full((10, 4), np.nan)}, measured, seed=0)


def test_a_genome_reads_as_it_computes_and_knows_no_units() -> None:
    tables = {"a": np.array([[1.0, 3.0]]), "b": np.array([[2.0, 2.0]])}
    genome = Genome(("a", "b"), (("sqrt", "square"), ()), "add")
    assert str(genome) == "add(square(sqrt(a)), b)"
    assert genome.table(tables) == pytest.approx(np.array([[1.5, 2.5]]))
    assert genome.table({"a": 10 * tables["a"], "b": tables["b"]}) == pytest.approx(genome.table(tables))
