"""EMQ: evolve a sensitivity proxy from others (Dong et al. 2023, "EMQ: Evolving Training-free Proxies").

A genome takes two tables [decisions, options], sends each through a chain of unary operations and joins them by a
binary one; its fitness is how well the result ranks measured candidates. Deterministic by its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moopt.errors import AlgorithmError
from moopt.ranking import Measured, fitness

FloatArray = npt.NDArray[np.float64]
Tables = Mapping[str, FloatArray]

LEAST = 1e-12

UNARY: dict[str, Callable[[FloatArray], FloatArray]] = {
    "log": lambda x: np.log(np.abs(x) + LEAST),
    "log1p": lambda x: np.log1p(np.abs(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "fourth-root": lambda x: np.abs(x) ** 0.25,
    "square": np.square,
    "abs": np.abs,
    "invert": lambda x: 1 / (x + LEAST),
    "exp": np.exp,
    "tanh": np.tanh,
    "by-decision": lambda x: x / x.mean(axis=1, keepdims=True),
    "by-option": lambda x: x / x.mean(axis=0, keepdims=True),
    "decision-mean": lambda x: np.broadcast_to(x.mean(axis=1, keepdims=True), x.shape),
    "option-mean": lambda x: np.broadcast_to(x.mean(axis=0, keepdims=True), x.shape),
}
BINARY: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": lambda a, b: a / (b + LEAST),
    "larger": np.maximum,
    "smaller": np.minimum,
}
LONGEST = 3
"""Unary operations of a chain at most."""
POPULATION, GENERATIONS, CANDIDATES = 40, 60, 20
"""Genomes alive, generations, and children of a generation."""


@dataclass(frozen=True)
class Genome:
    """A proxy made of two others.

    Attributes:
        inputs: The names of the two tables.
        chains: Unary operations on each, first to last.
        join: The binary operation.
    """

    inputs: tuple[str, str]
    chains: tuple[tuple[str, ...], tuple[str, ...]]
    join: str

    def table(self, tables: Tables) -> FloatArray:
        """The proxy's table from those of its inputs; every input is taken by its mean, so that units do not count."""
        with np.errstate(all="ignore"):
            a, b = (self._branch(tables[name], chain) for name, chain in zip(self.inputs, self.chains, strict=True))
            joined: FloatArray = BINARY[self.join](a, b)
        return joined

    def __str__(self) -> str:
        sides = []
        for name, chain in zip(self.inputs, self.chains, strict=True):
            for operation in chain:
                name = f"{operation}({name})"
            sides.append(name)
        return f"{self.join}({sides[0]}, {sides[1]})"

    def _branch(self, table: FloatArray, chain: tuple[str, ...]) -> FloatArray:
        value: FloatArray = table / (np.abs(table).mean() + LEAST)
        for operation in chain:
            value = UNARY[operation](value)
        return value


def evolve(tables: Tables, measured: Measured, seed: int) -> tuple[Genome, float]:
    """The fittest genome found, and its fitness on the candidates it was evolved on.

    Args:
        tables: What genomes may take, by name, [decisions, options] each, those that are not finite are screened out.
        measured: The candidates to rank.
        seed: Equal seeds give equal genomes.

    Raises:
        AlgorithmError: no genome tells the candidates apart.
    """
    rng = np.random.default_rng(seed)
    names = sorted(tables)
    alive: dict[Genome, float] = {}

    def fit(genome: Genome) -> float | None:
        """The fitness; None if the genome is screened out."""
        predicted = measured.predicted(genome.table(tables))
        if not np.isfinite(predicted).all() or np.ptp(predicted) == 0:
            return None
        return fitness(measured, predicted)

    for _ in range(50 * POPULATION):
        if len(alive) < POPULATION:
            _enter(alive, _random(names, rng), fit)
    if not alive:
        raise AlgorithmError(f"Nothing that is made of {', '.join(names)} is finite and tells the candidates apart.")
    for _ in range(GENERATIONS):
        for _ in range(CANDIDATES):
            mother, father = (_parent(alive, rng) for _ in range(2))
            _enter(alive, _mutated(_crossed(mother, father, rng), names, rng), fit)
        alive = _diverse(alive)
    best = max(alive, key=alive.__getitem__)
    return best, alive[best]


def _enter(alive: dict[Genome, float], genome: Genome, fit: Callable[[Genome], float | None]) -> None:
    if genome not in alive and (value := fit(genome)) is not None:
        alive[genome] = value


def _diverse(alive: dict[Genome, float]) -> dict[Genome, float]:
    """Who lives on: the fittest, but of those that rank exactly alike one alone."""
    kept: dict[float, Genome] = {}
    for genome in sorted(alive, key=lambda g: (-alive[g], str(g))):
        kept.setdefault(round(alive[genome], 6), genome)
    return {genome: alive[genome] for genome in list(kept.values())[:POPULATION]}


def _parent(alive: dict[Genome, float], rng: np.random.Generator) -> Genome:
    """Diversity-prompting: of five drawn, the fittest one, or half the time the one least like it."""
    genomes = list(alive)
    drawn: list[Genome] = [genomes[int(i)] for i in rng.integers(len(alive), size=5)]
    best = max(drawn, key=alive.__getitem__)
    if rng.random() < 0.5:
        return best
    return min(drawn, key=lambda genome: (_likeness(genome, best), -alive[genome]))


def _likeness(a: Genome, b: Genome) -> int:
    """How many parts two genomes share."""
    return sum(p == q for p, q in zip((*a.inputs, *a.chains, a.join), (*b.inputs, *b.chains, b.join), strict=True))


def _random(names: list[str], rng: np.random.Generator) -> Genome:
    first, second = (str(rng.choice(names)) for _ in range(2))
    return Genome((first, second), (_chain(rng), _chain(rng)), str(rng.choice(list(BINARY))))


def _chain(rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(str(rng.choice(list(UNARY))) for _ in range(rng.integers(LONGEST + 1)))


def _crossed(mother: Genome, father: Genome, rng: np.random.Generator) -> Genome:
    """One branch of each, and either's binary operation."""
    sides = [(g.inputs[i], g.chains[i]) for i, g in enumerate((mother, father))]
    join = (mother, father)[rng.integers(2)].join
    return Genome((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]), join)


def _mutated(genome: Genome, names: list[str], rng: np.random.Generator) -> Genome:
    """One part drawn anew: an input, the binary operation, or in a chain an operation, which may also come or go."""
    side, what = int(rng.integers(2)), rng.choice(["join", "input", "change", "insert", "drop"])
    if what == "join":
        return replace(genome, join=str(rng.choice(list(BINARY))))
    inputs, chains = list(genome.inputs), list(genome.chains)
    if what == "input":
        inputs[side] = str(rng.choice(names))
    else:
        chain, at = chains[side], int(rng.integers(LONGEST))
        new = () if what == "drop" else (str(rng.choice(list(UNARY))),)
        chains[side] = (*chain[:at], *new, *chain[at + (what != "insert") :])[:LONGEST]
    return replace(genome, inputs=(inputs[0], inputs[1]), chains=(chains[0], chains[1]))
