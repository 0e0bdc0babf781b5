"""A better front of a real language model for fewer tokens? `auto` on SmolLM2-135M against TPE and NSGA-II.

    python studies/benchmarks/smollm2.py                        everything, for hours; again, and it goes on
    python studies/benchmarks/smollm2.py --only 'auto; qnehvi'  some of the searches
    python studies/benchmarks/smollm2.py --show                 run nothing, show what is finished

120 decisions of six widths. All that a search does is counted in forward tokens, sensitivities and gradients included.
The peers get ten times the tokens, and the uniform baselines first, as everyone does. A draw is of the text and labels
that sensitivities are made of, and the seed of the search. Exits with an error if something falls short.
"""

import argparse
import gc
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

import moopt
from moopt import pareto
from moopt.algorithms import QNEHVI
from moopt.algorithms.opening import configuration
from moopt.bench import runner, units
from moopt.bench.races import Race
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

EVALUATION, EARLY, LATE, PEERS_TOKENS = 2_048, 60_000, 300_000, 600_000
HELD_OUT = Fidelity(24_576, "held-out")
TABLE_TOKENS = 12_288
"""Of the sensitivities whose knapsack is to be beaten at 3.0 bits; the searches make do with a third."""
PEERS = ("optuna-tpe", "pymoo-nsga2")
OURS = {
    "auto": lambda: "auto",
    "qnehvi": QNEHVI,  # what auto takes where there are no gradients
    "qnehvi, no prior mean": partial(QNEHVI, prior=False),
    "qnehvi, no trust region": partial(QNEHVI, trust_region=False),
    "qnehvi, rounding": partial(QNEHVI, rounding=True),
}
problem = partial(BitAllocation, "smollm2-135m", tokens=EVALUATION, held_out=0, validation=0, sensitivity_tokens=4_096)


def race(draws):
    """What the peers search: nothing but widths and values."""
    return Race("smollm2 bits", partial(problem, sensitivities=None), PEERS_TOKENS // EVALUATION, PEERS, range(draws))


def searched(name, draw, out, tokens):
    """One of our studies, run until it has spent its tokens."""
    study = moopt.Study(f"{name} {draw}", problem(draw=draw), OURS[name](), out / f"{name} {draw}.journal", seed=draw)
    if tokens:
        study.run(tokens=tokens)
    return study


def found(history, tokens):
    """What a study had measured when it had spent so many tokens, [n, 2]: KL and bytes."""
    spent, numbers = 0, []
    for event in history.events:
        spent += event.tokens
        if spent <= tokens and event.outcome is not None and event.job.kind == "evaluate":
            numbers.append(event.job.trial)
    return history.values(t for t in history.feasible() if t.number in numbers)


def at_three_bits(study, path):
    """KL on held-out text of the knapsack on sensitivities at 3.0 bits, and of the best that is no larger."""
    if not path.exists():
        loaded, costs = study.problem, study.problem.costs()
        knapsack = Knapsack(loaded.sensitivities("fisher", TABLE_TOKENS), costs).at(int(costs[:, 1].sum()))
        best = study.pick(f"size_mb <= {loaded.known(loaded.baselines()['uniform-3'])['size_mb']}")
        pair = {
            name: loaded.evaluate(config, HELD_OUT).values["kl"]
            for name, config in (("knapsack", configuration(loaded, knapsack)), ("best", best.config))
        }
        path.write_text(json.dumps(pair))
    return json.loads(path.read_text())


def volumes(values, reference):
    """The hypervolume of KL and bytes, and of the logarithm of KL and bytes, which weighs all sizes alike."""
    logs = [np.stack([np.log(v[:, 0]), v[:, 1]], 1) for v in (values, reference[None])]
    return np.array([pareto.hypervolume(values, reference), pareto.hypervolume(logs[0], logs[1][0])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="where studies and figures are kept")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", default="", help=f"searches, with semicolons between: {'; '.join((*OURS, *PEERS))}")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    only = [name.strip() for name in asked.only.split(";") if name.strip()]
    for draw in range(asked.draws) if not asked.show else ():
        for name in [n for n in OURS if not only or n in only]:
            at_three_bits(searched(name, draw, asked.out, LATE), asked.out / f"{name} {draw}.json")
            gc.collect()  # a study holds gigabytes, and refers to itself
            print(f"{name}, draw {draw}: done", file=sys.stderr)
        names = [n for n in PEERS if not only or n in only]
        if names:
            peers = race(asked.draws)
            runner.run([Race(peers.name, peers.make, peers.evaluations, names, [draw])], asked.out)
    sys.exit(0 if report(asked.out, asked.draws) else 1)


def report(out, draws):
    """Print what is finished and what we ask of it; whether nothing falls short."""
    peers = {name: [units.load(out, "smollm2 bits", name, d) for d in range(draws)] for name in PEERS}
    peers = {name: [np.array(u.values) for u in each if u] for name, each in peers.items()}
    ours = {name: [d for d in range(draws) if (out / f"{name} {d}.json").exists()] for name in OURS}
    histories = {name: [searched(name, d, out, 0).history for d in each] for name, each in ours.items()}
    if not any(histories.values()):
        print("not measured: no search of ours is finished")
        return True
    opening = next(h for each in histories.values() for h in each)
    uniform = opening.values(t for t in opening.trials if (t.label or "").startswith("uniform"))
    reference = pareto.reference_point(uniform)
    rows = {(n, PEERS_TOKENS): [volumes(v, reference) for v in each] for n, each in peers.items()}
    for tokens in (EARLY, LATE):
        rows |= {(n, tokens): [volumes(found(h, tokens), reference) for h in e] for n, e in histories.items()}
    medians = {key: np.median(each, axis=0) for key, each in rows.items() if each}
    best = np.max(list(medians.values()), axis=0)
    print(f"{'search':28}{'draws':>6}{'tokens':>9}{'volume':>9}{'of log KL':>11}   (medians, as shares of the best)")
    for (name, tokens), values in medians.items():
        plain, logs = values / best
        print(f"{name:28}{len(rows[name, tokens]):6}{tokens:9}{plain:9.4f}{logs:11.4f}")
    print("\nKL on held-out text at 3.0 bits, sampled-Fisher knapsack -> best of the search at 300k tokens")
    gains = {}
    for name, each in ours.items():
        pairs = [json.loads((out / f"{name} {d}.json").read_text()) for d in each]
        gains[name] = [1 - p["best"] / p["knapsack"] for p in pairs]
        for d, p, gain in zip(each, pairs, gains[name], strict=True):
            print(f"{name:28} draw {d}: {p['knapsack']:.4f} -> {p['best']:.4f}, {gain:.1%} lower")
    good = True
    for name in PEERS:
        if ("auto", EARLY) in medians and (name, PEERS_TOKENS) in medians:
            ratio = float(np.min(medians["auto", EARLY] / medians[name, PEERS_TOKENS]))
            good &= judged(f"auto at 60k tokens over {name} at 600k, the smaller of both volumes", ratio, 1.0)
    for name in ("auto", "qnehvi"):
        if gains[name]:
            good &= judged(f"{name} at 300k below the knapsack at 3.0 bits, median", np.median(gains[name]), 0.04)
    return good


def judged(text, value, bound):
    print(f"{'PASS' if value >= bound else 'FAIL'} {text}: {value:.4f} (>= {bound})")
    return value >= bound


if __name__ == "__main__":
    main()
