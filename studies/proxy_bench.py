"""Makes the proxy bench: random bit allocations of SmolLM2-135M of three sizes with their measured KL, as one table.

    python studies/proxy_bench.py                 about 20 minutes on one core; again, and it goes on
    python studies/proxy_bench.py --show          measure nothing, show what the table is worth

A third of the allocations each is within 1% of 3.0, 3.5 and 4.0 bits over the linear layers. Some follow the kind of
layer, some its depth, some nothing; some are nearly uniform, some far from it. All are measured on the same held-out
text. Their KL on every second sequence, beside that on the others, says how far the ranking can be trusted.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from moopt.problem import Fidelity
from moopt_problems import BitAllocation
from moopt_problems.data import SMOLLM2

SIZES = (3.0, 3.5, 4.0)
WITHIN = 0.01
SEQUENCE = 128
ARGUMENTS = {
    "model": "smollm2-135m", "bits": (2, 3, 4, 5, 6, 8), "group_size": 64, "quantizer": "rtn", "tie": "fused",
    "context": SEQUENCE, "tokens": 1152,
}  # fmt: skip
"""Of the problem; what measures single layers for a proxy does so on such sequences, too."""


def allocation(problem, size, rng):
    """A random configuration within 1% of a size: wishes for every layer, moved together until their bits fit."""
    names, shown = list(problem.space), problem.decisions()
    kinds = {column: rng.standard_normal() for column in sorted({d["column"] for d in shown})}
    depth = np.linspace(-1, 1, len(names))
    by_kind, by_depth, alone = rng.dirichlet([0.5, 0.5, 1.0])
    wishes = (
        by_kind * np.array([kinds[d["column"]] for d in shown])
        + by_depth * rng.standard_normal() * depth
        + alone * rng.standard_normal(len(names))
    )
    wishes *= rng.uniform(0.3, 1.8) / wishes.std()
    low, high = size - 6.0, size + 6.0
    for _ in range(40):
        level = (low + high) / 2
        widths = [
            min(problem.space[n].values, key=lambda b, w=w: abs(b - w))
            for n, w in zip(names, level + wishes, strict=True)
        ]
        config = dict(zip(names, widths, strict=True))
        if abs(problem.bits(config) / size - 1) <= WITHIN:
            return config
        low, high = (level, high) if problem.bits(config) < size else (low, level)
    return allocation(problem, size, rng)  # no level fits: the steps of these wishes are too coarse


def measured(problem, configs, path, fidelity):
    """Each configuration's KL on every sequence, [n, s]; what is measured is kept in a file line by line."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a") as file:
        for number, config in enumerate(configs[len(done) :], len(done)):
            samples = problem.evaluate(config, fidelity).samples["kl"]
            file.write(json.dumps(samples) + "\n")
            file.flush()
            done.append(samples)
            print(f"{number + 1}/{len(configs)}: KL {np.mean(samples):.4f}", flush=True)
    return np.array(done[: len(configs)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/proxy-bench"), help="where unfinished work is kept")
    parser.add_argument("--each", type=int, default=72, help="allocations of each size")
    parser.add_argument("--tokens", type=int, default=1152)
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    if not asked.show:
        make(asked.out, asked.each, asked.tokens)
    show(pd.read_parquet(SMOLLM2))


def make(out, each, tokens):
    """Measure and write the table."""
    out.mkdir(parents=True, exist_ok=True)
    problem = BitAllocation(**ARGUMENTS, sensitivities=None, held_out=tokens, validation=0)
    rng = np.random.default_rng(0)
    sizes = [size for _ in range(each) for size in SIZES]
    configs = [allocation(problem, size, rng) for size in sizes]
    samples = measured(problem, configs, out / f"kl-{tokens}.jsonl", Fidelity(tokens, "held-out"))
    table = pd.DataFrame(configs).astype("uint8")
    table.insert(0, "size", sizes)
    table.insert(1, "bits", [problem.bits(c) for c in configs])
    table.insert(2, "bytes", [problem.bytes(c) for c in configs])
    table.insert(3, "kl", samples.mean(1))
    table.insert(4, "standard_error", samples.std(1, ddof=1) / samples.shape[1] ** 0.5)
    table.insert(5, "kl_even", samples[:, 0::2].mean(1))
    table.insert(6, "kl_odd", samples[:, 1::2].mean(1))
    table.attrs = {"arguments": ARGUMENTS, "text": problem.text.identity, "tokens": tokens}
    table.to_parquet(SMOLLM2, compression="zstd", index=False)


def show(table):
    """What the table holds and how far its ranking can be trusted."""
    print(f"{len(table)} allocations, {table.attrs['tokens']} tokens of held-out text ({table.attrs['text']})")
    for size, part in table.groupby("size"):
        agree = part["kl_even"].corr(part["kl_odd"], method="spearman")
        kl = part["kl"]
        print(
            f"{size} bits: {len(part)}, KL {kl.min():.3f} to {kl.max():.3f}, median {kl.median():.3f}, standard error "
            f"{(part['standard_error'] / kl).median():.1%}; Spearman of the halves {agree:.3f}, "
            f"of the whole {2 * agree / (1 + agree):.3f} (Spearman-Brown)"
        )


if __name__ == "__main__":
    main()
