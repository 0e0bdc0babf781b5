"""Does EMQ with fitted factors find a proxy that beats the best hand-made one on allocations it has not seen?

    python studies/benchmarks/factored_proxies.py              minutes, once `proxies.py` has made the tables
    python studies/benchmarks/factored_proxies.py --inputs fisher,fisher-diagonal,output-error

A genome is a product of tables' powers and of factors: by kind of layer, depth, width, or a table itself. Their
exponents are fitted by a ridge regression on the log loss within sizes. Fitness is the cross-validated Spearman
correlation within sizes, less a penalty for every part. The proxy is the mean table of the best genome of each seed.
All of that sees half of the allocations; the other half, which `proxies.py` judges on too, is looked at once, at the
end. Exits with an error if the interval of the gain over the best input is not above 0.
"""

import argparse
import sys
from functools import cached_property

import numpy as np
from proxies import MEASURED, halves, judged

from moopt import cli_proxies, ranking
from moopt.backend import proxies
from moopt.backend.proxies import stored

PENALTY, RIDGES = 0.002, (1.0, 3.0, 10.0)
FOLDS, REPEATS = 6, 4
POPULATION, GENOMES = 24, 260
"""Genomes alive, and genomes looked at from a seed."""


def factors(problem, logs):
    """What a table may be multiplied by a power of, as logarithms [decisions, options], by name."""
    shown, widths = problem.decisions(), np.array(problem.space[next(iter(problem.space))].values)
    rows = np.array([int(d["row"]) for d in shown])
    kinds = {name: np.array([[d["column"] == name] for d in shown]) for name in sorted({d["column"] for d in shown})}
    depth, low = (2 * rows / rows.max() - 1)[:, None], widths[None] <= 3
    made = {"depth": depth, "depth^2": depth**2, "first": depth == -1, "last": depth == 1, "low": low}
    made |= {name: kind - 0.25 for name, kind in kinds.items()}
    made |= {f"{name} by depth": kind * depth for name, kind in kinds.items()}
    made |= {f"{name} low": kind * low for name, kind in kinds.items()}
    made |= {f"{bits} bits": widths[None] == bits for bits in widths[:-1]} | {"2 bits by depth": (widths == 2) * depth}
    made |= {f"log {name}": (log - log.mean()) / log.std() for name, log in logs.items()}
    return {name: np.broadcast_to(value, (len(rows), len(widths))).astype(float) for name, value in made.items()}


class Fits:
    """Genomes ((table, power), ...), (factor, ...), ridge: fitted to measured candidates, and how well they rank."""

    def __init__(self, measured, logs, made):
        self.measured, self.logs, self.made = measured, logs, made

    @cached_property
    def centres(self):
        return (self.measured.sizes[:, None] == np.unique(self.measured.sizes)).astype(float)

    def taken(self, table):
        """What each candidate takes of a table, [n, decisions]."""
        return table[np.arange(len(table)), self.measured.options]

    def parts(self, genome):
        """The product of tables and the factors, as logarithms: [n, decisions], [n, decisions, factors]."""
        base = sum(power * self.taken(self.logs[name]) for name, power in genome[0])
        return base, np.stack([self.taken(self.made[name]) for name in genome[1]], -1) if genome[1] else None

    def exponents(self, genome, base, given, rows):
        """Of each factor, by two Gauss-Newton steps on the log loss less its mean within each size."""
        exponents = np.zeros(len(genome[1]))
        if not genome[1]:
            return exponents
        of, goal = self.centres[rows], np.log(self.measured.losses[rows])

        def centred(x):
            return x - of @ ((of / of.sum(0)).T @ x)

        for _ in range(2):
            terms = np.exp(base[rows] + given[rows] @ exponents)
            slopes = centred(np.einsum("nd,ndf->nf", terms / terms.sum(1, keepdims=True), given[rows]))
            left = slopes.T @ centred(goal - np.log(terms.sum(1))) - genome[2] * exponents
            step = np.linalg.solve(slopes.T @ slopes + genome[2] * np.eye(len(exponents)), left)
            exponents = exponents + step * min(1, 2 / np.abs(step).max())
        return exponents

    def cross_validated(self, genome, seed):
        """Predictions of each candidate by exponents that were fitted to the other folds, [n]."""
        (base, given), rng = self.parts(genome), np.random.default_rng(seed)
        fold, predicted = np.zeros(len(base), int), np.zeros(len(base))
        for of in self.centres.T:
            rows = rng.permutation(np.flatnonzero(of))
            fold[rows] = np.arange(len(rows)) % FOLDS
        for out in (fold == i for i in range(FOLDS)):
            exponents = self.exponents(genome, base, given, np.flatnonzero(~out))
            predicted[out] = np.exp(base[out] + (given[out] @ exponents if genome[1] else 0)).sum(1)
        return predicted

    def fitness(self, genome, seed):
        found = [ranking.fitness(self.measured, self.cross_validated(genome, seed + i)) for i in range(REPEATS)]
        return np.mean(found) - PENALTY * (len(genome[0]) + len(genome[1]))

    def table(self, genome):
        """The proxy that a genome is once it is fitted to all candidates, of mean 1."""
        exponents = self.exponents(genome, *self.parts(genome), np.arange(len(self.measured.losses)))
        log = sum(power * self.logs[name] for name, power in genome[0])
        table = np.exp(log + sum(e * self.made[name] for name, e in zip(genome[1], exponents, strict=True)))
        return table / table.mean()


def normed(powers):
    """Powers in eighths, made to sum to 1; those of none left out."""
    kept = {name: round(8 * power) for name, power in sorted(powers.items()) if round(8 * power) > 0}
    return tuple((name, power / sum(kept.values())) for name, power in kept.items())


def mutated(genome, fits, rng):
    powers, chosen, ridge = dict(genome[0]), set(genome[1]), genome[2]
    for _ in range(rng.integers(1, 3)):
        what = rng.integers(6)
        if what == 0:
            name = str(rng.choice(list(fits.logs)))
            powers[name] = max(0, powers.get(name, 0) + rng.choice([-0.25, -0.125, 0.125, 0.25]))
        elif what == 1:
            ridge = float(rng.choice(RIDGES))
        elif what == 2 and chosen:
            chosen.discard(str(rng.choice(sorted(chosen))))
        else:
            chosen.add(str(rng.choice(list(fits.made))))
    return normed(powers) or genome[0], tuple(sorted(chosen)), ridge


def crossed(mother, father, rng):
    """The mean of both's powers, the factors of both, and half of those of one."""
    first, second = dict(mother[0]), dict(father[0])
    powers = {name: (first.get(name, 0) + second.get(name, 0)) / 2 for name in first | second}
    both = sorted({*mother[1], *father[1]})
    chosen = tuple(f for f in both if rng.random() < 0.5 or (f in mother[1] and f in father[1]))
    return normed(powers) or mother[0], chosen, (mother, father)[rng.integers(2)][2]


def evolve(fits, seed):
    """The fittest genome of a seed and its fitness."""
    rng, seen = np.random.default_rng(seed), {}

    def fitness(genome):
        if genome not in seen:
            seen[genome] = fits.fitness(genome, 10 * seed)
        return seen[genome]

    def parent():
        return max((alive[i] for i in rng.integers(len(alive), size=3)), key=fitness)

    alive = [(((name, 1.0),), (), RIDGES[0]) for name in fits.logs]
    alive += [mutated(alive[int(rng.integers(len(alive)))], fits, rng) for _ in range(POPULATION - len(alive))]
    while len(seen) < GENOMES:
        children = [crossed(parent(), parent(), rng) if rng.random() < 0.5 else parent() for _ in range(POPULATION)]
        alive = sorted({*alive, *(mutated(child, fits, rng) for child in children)}, key=lambda g: (-fitness(g), g))
        alive = alive[:POPULATION]
    return alive[0], seen[alive[0]]


def judge(problem, known, tables, seeds):
    """Evolve from tables, then say once how that does on allocations that it has not seen; whether it beats them."""
    rows, held_out = halves(known)
    training, unseen = known.part(rows), known.part(held_out)
    logs = {name: np.log(np.abs(table) + 1e-12) for name, table in tables.items()}
    fits = Fits(training, logs, factors(problem, logs))
    found = [evolve(fits, seed) for seed in range(seeds)]
    print(f"\nEvolved on {len(rows)} allocations from {', '.join(tables)}:")
    for (powers, chosen, ridge), fitness in found:
        text = " ".join(f"{name}^{power:.2f}" for name, power in powers)
        print(f"  {fitness:.3f}  {text}; {', '.join(chosen) or 'no factors'}; ridge {ridge:g}")
    best = max(tables, key=lambda name: ranking.fitness(training, training.predicted(tables[name])))
    folds = np.mean([fits.cross_validated(genome, 1000) for genome, _ in found], axis=0)
    gain = ranking.gain(training, folds, training.predicted(tables[best]))
    print(f"  over {best} on folds of these, which chose the genomes: {gain}")
    predicted = unseen.predicted(np.mean([fits.table(genome) for genome, _ in found], axis=0))
    print(f"  Spearman on {len(held_out)} unseen ones {ranking.mean_within(unseen, predicted)}")
    best = max(tables, key=lambda name: ranking.fitness(unseen, unseen.predicted(tables[name])))
    gain = ranking.gain(unseen, predicted, unseen.predicted(tables[best]))
    return judged(f"over {best}, the best of its inputs on unseen allocations: {gain}", gain.low > 0, "above 0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--inputs", help="tables to evolve from, with commas between; left out: what measures no loss")
    asked = parser.parse_args()
    problem, known = cli_proxies.subject(None, None, ())
    names = [n for n in cli_proxies.asked(problem, asked.inputs) if asked.inputs or n not in MEASURED]
    tables = {name: stored.table(problem, name, proxies.named(name).usual) for name in names}
    sys.exit(0 if judge(problem, known, tables, asked.seeds) else 1)


if __name__ == "__main__":
    main()
