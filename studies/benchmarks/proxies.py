"""Which sensitivity proxy ranks bit allocations best, for how many tokens, and does evolution find a better one?

    python studies/benchmarks/proxies.py              tables are made once, then kept
    python studies/benchmarks/proxies.py --seeds 5    evolve from more seeds

On the proxy bench (`studies/proxy_bench.py`): SmolLM2-135M, round-to-nearest, group 64, held-out text. Proxies are
evolved (EMQ) from those that measure no loss, on half of the allocations of each size, and compared on the other half
with the hand-made one that is best there. Exits with an error if something falls short.
"""

import argparse
import sys

import numpy as np

from moopt import cli_proxies, emq, ranking
from moopt.backend import proxies
from moopt.backend.proxies import stored
from moopt.cli_output import print_table

ENOUGH = 0.7
"""The Spearman correlation at a fixed size that HAWQ-V2 and Fisher are asked for."""
MEASURED = ("higgs", "one-layer")
"""Proxies that measure the loss of single changes: nothing to evolve from."""


def halves(known, seed=0):
    """Rows to evolve on and rows to judge on: half of the allocations of each size."""
    rng, first, second = np.random.default_rng(seed), [], []
    for size in np.unique(known.sizes):
        rows = rng.permutation(np.flatnonzero(known.sizes == size))
        first.extend(rows[: len(rows) // 2])
        second.extend(rows[len(rows) // 2 :])
    return np.sort(first), np.sort(second)


def evolved(tables, known, seeds):
    """Evolve, and say how what came out does on allocations that it has not seen; whether it beats the best there."""
    rows, held_out = halves(known)
    training, unseen = known.part(rows), known.part(held_out)
    cheap = {name: table for name, table in tables.items() if name not in MEASURED}
    found = [emq.evolve(cheap, training, seed) for seed in range(seeds)]
    genome, fitness = max(found, key=lambda pair: pair[1])
    print(f"\nEvolved on {len(rows)} allocations from {', '.join(cheap)}, {seeds} seeds:")
    print(f"  {genome}\n  Spearman there {fitness:.3f}, on {len(held_out)} unseen ones ", end="")
    predicted = unseen.predicted(genome.table(cheap))
    print(ranking.mean_within(unseen, predicted))
    good = []
    for kind, choice in (("", tables), (" that measures no loss", cheap)):
        best = max(choice, key=lambda name: ranking.fitness(unseen, unseen.predicted(choice[name])))
        gain = ranking.gain(unseen, predicted, unseen.predicted(choice[best]))
        text = f"EMQ over {best}, the best hand-made proxy{kind}, on unseen allocations: {gain}"
        good.append(judged(text, gain.low > 0, "interval above 0"))
    return all(good)


def judged(text, good, wanted):
    print(f"{'PASS' if good else 'FAIL'} {text} ({wanted})")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="some proxies, with commas between; left out: all, for over an hour of one core")
    asked = parser.parse_args()
    problem, known = cli_proxies.subject(None, None, ())
    names = cli_proxies.asked(problem, asked.only)
    rows = cli_proxies.ranked(problem, known, names, None, lambda text: print(text, file=sys.stderr))
    print_table(*cli_proxies.cells(rows), f"{len(known.losses)} allocations, Spearman with 95% intervals")
    good = True
    for row in rows:
        if row["proxy"] in ("hawq-v2", "fisher"):
            for size, found in row["by_size"].items():
                good &= judged(f"{row['proxy']} at {size:g} bits: {found}", found.value >= ENOUGH, f">= {ENOUGH}")
    tables = {name: stored.table(problem, name, proxies.named(name).usual) for name in names}
    sys.exit(0 if evolved(tables, known, asked.seeds) and good else 1)


if __name__ == "__main__":
    main()
