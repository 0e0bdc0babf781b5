"""Searching merging coefficients: MAP, Frank-Wolfe and MM-MO against what they claim to beat, on tuned digit models.

    python studies/benchmarks/merging.py                  everything, about an hour
    python studies/benchmarks/merging.py map nested       some of it: map, nested, bayesian, frank-wolfe, mm-mo, memory

The models are vision transformers tuned to digits turned by multiples of 45 degrees (`digits_models`); the search sees
200 images a task, and what is reported of Frank-Wolfe is measured on the 297 that are held out. What one merge scored
is kept, so that a run goes on where it stopped. Exits with an error if something falls short.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import wilcoxon

import moopt
from moopt import pareto
from moopt.algorithms import MAP, MMMO, NSGA2, QNEHVI, BayesianMAP, FrankWolfeMerge, NestedMAP, Random
from moopt.algorithms.amortized import most_volume
from moopt.backend.merging import METHODS
from moopt.quadratics import fit, terms
from moopt_problems import ModelMerge
from moopt_problems.synthetic import digits_models

STEPS = 21
"""Of the grid that a front is compared with, a coefficient."""
SEEDS = 10
PICKS = 100
"""Merges of its models' front that MAP evaluates for the comparison with a grid: as many as the paper's population."""
SCALES, DENSITIES = np.linspace(0.1, 1.0, 10), (0.2, 0.5, 0.8)
"""What tuning tries of task arithmetic, TIES and DARE."""


class Kept(ModelMerge):
    """A merge whose scores are kept by configuration and split: the landscape is fixed, and searches are many."""

    scores: ClassVar = {}

    @cached_property
    def identity(self):
        return self.fingerprint()["identity"]

    def evaluate(self, config, fidelity):
        told = json.dumps([self.identity, config, fidelity.batch], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()
        if key not in self.scores:
            found = super().evaluate(config, fidelity)
            self.scores[key] = dict(found.values)
        return moopt.Evaluation(self.scores[key])


def merging(count, extra=(), measure="accuracy", **arguments):
    """Merges of so many tuned models and of others, on the tasks of the tuned ones."""
    folders = digits_models.tuned(count=count)
    base = folders.pop("base")
    return Kept(folders | dict(extra), digits_models.tasks(count=count, measure=measure), base=base, **arguments)


def searched(problem, algorithm, trials, seed=0):
    """The values [n, m] that a search measured, signs turned, and the study."""
    study = moopt.Study("merge", problem, algorithm, seed=seed, resources=moopt.Resources(threads=1))
    study.problem.measurements = {}
    history = study.run(trials=trials).history
    return history.values(history.feasible()), study


def volume(values, corner):
    return pareto.hypervolume(values, corner)


def asked_of_map():
    """The re-evaluated front over the front of a grid, for two and for three models; the grids first, for minutes."""
    for measure, count in product(("accuracy", "loss"), (2, 3)):
        what = f"map, {count} models, {measure}"
        problem = merging(count, measure=measure)
        problem.setup(moopt.Resources(threads=1))
        steps = np.linspace(0, 1, STEPS)
        grid = np.stack(np.meshgrid(*[steps] * count), -1).reshape(-1, count)
        rows = [problem.evaluate(problem.space.decode(row), problem.fidelity).values for row in grid]
        exact = pareto.minimised(rows, problem.objectives)
        corner, signs = pareto.reference_point(exact), [o.sign for o in problem.objectives]
        print(f"{what}: {PICKS} picks of quadratics of the whole grid {ceiling(grid, exact, PICKS, signs):.3f}")
        samples, shares = 2 * terms(count), []
        for seed in range(SEEDS):
            algorithm = MAP(samples=samples)
            values, _ = searched(problem, algorithm, samples + PICKS, seed)
            shares.append(volume(values, corner) / volume(exact, corner))
            fits = ", ".join(f"{name} {fit:.2f}" for name, fit in algorithm.fits().items())
            print(f"{what}, seed {seed}: {samples} samples, {len(values)} trials; held-out R^2: {fits}")
        yield (
            f"{what}: its front over that of {STEPS}^{count} merges, median of {SEEDS} seeds",
            np.median(shares),
            0.95,
        )


def ceiling(grid, exact, count, signs):
    """The share of the grid's volume that so many merges have, the best by quadratics that are fitted to all of it."""
    corner = pareto.reference_point(exact)
    predicted = np.column_stack([s * fit(grid, s * each).mean(grid) for s, each in zip(signs, exact.T, strict=True)])
    front = np.flatnonzero(pareto.nondominated(predicted))
    best = front[most_volume(predicted[front], predicted[:0], corner, count)[:count]]
    return volume(exact[best], corner) / volume(exact, corner)


def asked_of_nested():
    """Eight models within 20 N ceil(log2 N) evaluations, against the members, their mean, and random merges."""
    count, most = 8, 20 * 8 * 3
    problem = merging(count)
    values, study = searched(problem, NestedMAP(), most)
    means = -values.mean(axis=1)
    first = count + 2 + 20 * (count - 1) + 1
    rivals, _ = searched(merging(count), Random(), most)
    alone = max(
        -np.mean([t.values[o.name] * o.sign for o in problem.objectives]) for t in study.history.trials[: count + 2]
    )
    print(
        f"nested, 8 models: mean accuracy {alone:.3f} of the best member or the mean, {means[:first].max():.3f} after "
        f"{first} trials, {means.max():.3f} after {most}; random merges {-rivals.mean(axis=1).min():.3f}"
    )
    yield (
        "nested, 8 models: its best mean accuracy over that of random merges",
        means.max() / -rivals.mean(axis=1).min(),
        1.0,
    )


def asked_of_bayesian():
    """Bayesian MAP over MAP at equal evaluations."""
    for measure, (count, samples) in product(("accuracy", "loss"), ((2, 8), (3, 14))):
        ratios = []
        for seed in range(SEEDS):
            trials = samples + 20 * 2 ** (count - 2)  # two rounds of picks
            ours, plain = (
                searched(merging(count, measure=measure), kind(samples=samples), trials, seed)[0]
                for kind in (BayesianMAP, MAP)
            )
            corner = pareto.reference_point(np.vstack([ours, plain]))
            ratios.append(volume(ours, corner) / volume(plain, corner))
        what = f"bayesian, {count} models, {samples} samples, {measure}"
        yield f"{what}: over MAP, median of {SEEDS} seeds", np.median(ratios), 1.0


def held_out(problem, config):
    """The mean accuracy on held-out images, in points."""
    values = problem.evaluate(config, moopt.Fidelity(0, "held-out")).values
    return 100 * float(np.mean(list(values.values())))


def best(problem, algorithm, trials, seed=0):
    """The merge of the best mean accuracy that a search found, on held-out images, in points."""
    _, study = searched(problem, algorithm, trials, seed)
    chosen = max(study.history.feasible(), key=lambda t: np.mean([t.values[o.name] for o in problem.objectives]))
    return held_out(study.problem, chosen.config)


def arithmetic(problem, scale):
    """Task arithmetic at one scale for all models, on held-out images, in points."""
    problem.setup(moopt.Resources(threads=1))
    return held_out(problem, dict.fromkeys(problem.space.names, scale))


def tuned_scale(problem):
    """A method's best scale and density by the search's images, on held-out images, in points."""
    problem.setup(moopt.Resources(threads=1))
    thins = any(name.startswith("density") for name in problem.space.names)
    tried = []
    for scale in SCALES:
        for density in DENSITIES if thins else (1.0,):
            config = {n: density if n.startswith("density") else float(scale) for n in problem.space.names}
            tried.append((np.mean(list(problem.evaluate(config, problem.fidelity).values.values())), config))
    return held_out(problem, max(tried, key=lambda pair: pair[0])[1])


def frank_wolfe(count, extra=(), kind="soft"):
    problem = merging(count, extra, method="linear", weights="simplex", per="module")
    members = len(problem.models)
    trials = members + 1 + (12 if kind == "soft" else 31)
    return best(problem, FrankWolfeMerge(kind, rounds=30, step=0.3, updates=200, every=20), trials)


def asked_of_frank_wolfe():
    """What irrelevant models do to it and to task arithmetic; and eight related models against tuned merges."""
    noise = digits_models.irrelevant(12)
    few, many = merging(4), merging(4, noise)
    lost = arithmetic(few, 1 / 4) - arithmetic(many, 1 / 16), arithmetic(few, 0.3) - arithmetic(many, 0.3)
    print(f"4 models, 12 irrelevant: task arithmetic loses {lost[0]:.1f} points as a mean, {lost[1]:.1f} at scale 0.3")
    for kind in ("soft", "hard"):
        small, large = frank_wolfe(4, kind=kind), frank_wolfe(4, noise, kind)
        print(f"frank-wolfe, {kind}: {small:.1f} with 4 models, {large:.1f} with 12 irrelevant ones beside them")
        yield f"frank-wolfe, {kind}: points lost to irrelevant models", small - large, 1.0
    yield "task arithmetic: points lost to irrelevant models", max(lost), 10.0
    tuned = {
        "task arithmetic": tuned_scale(merging(8)),
        "ties": tuned_scale(merging(8, method="ties", scale=(0.1, 3.0))),
        "dare": tuned_scale(merging(8, method="dare_linear")),
    }
    ours = {kind: frank_wolfe(8, kind=kind) for kind in ("soft", "hard")}
    print("8 models: " + ", ".join(f"{name} {value:.1f}" for name, value in (tuned | ours).items()))
    yield (
        "8 models: frank-wolfe less the best of task arithmetic, ties and dare, points",
        max(ours.values()) - max(tuned.values()),
        0.0,
    )


def asked_of_mmmo():
    """MM-MO at 30 evaluations against others and without its ideas: tables, whoever wins; others at 60, too."""
    others = {"qnehvi": partial(QNEHVI, initial=10), "nsga2": partial(NSGA2, 10), "map": MAP, "random": Random}
    without = {
        "mm-mo, no weak-to-strong": partial(MMMO, weak_to_strong=False),
        "mm-mo, no screening": partial(MMMO, screening=False),
        "mm-mo, neither": partial(MMMO, weak_to_strong=False, screening=False),
    }  # fmt: skip
    for evaluations, every in ((30, {"mm-mo": MMMO, **without, **others}), (60, {"mm-mo": MMMO, **others})):
        for sparsity in (True, False):
            compared(evaluations, every, sparsity)
    return iter(())


def compared(evaluations, every, sparsity):
    """Print what each search made of so many evaluations, and the odds that a difference from MM-MO is chance."""
    found = {name: [] for name in every}
    for seed in range(SEEDS):
        runs = {}
        for name, make in every.items():
            problem = merging(2, method="dare_ties", distance=sparsity)
            runs[name] = searched(problem, make(), evaluations, seed)[0][:, :2]
        corner = pareto.reference_point(np.vstack(list(runs.values())))
        for name, values in runs.items():
            found[name].append(volume(values, corner))
    top = max(np.median(each) for each in found.values())
    with_it = "with" if sparsity else "without"
    print(f"\n{evaluations} evaluations of dare_ties, {with_it} the distance; volume of accuracies")
    for name, each in sorted(found.items(), key=lambda pair: -np.median(pair[1])):
        p = wilcoxon(each, found["mm-mo"]).pvalue if name != "mm-mo" else np.nan
        print(f"{name:28}{np.median(each) / top:8.4f}   p {p:.3f}", flush=True)


MEASURED = """
import sys, threading, time
from moopt.backend.merging import Merger, Recipe
places, method = sys.argv[2:], sys.argv[1]
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
members = {str(i): place for i, place in enumerate(places[1:])}
each = {name: {"": 0.7} for name in members}
merger, most, on = Merger(members, places[0]), [], threading.Event()
def watch():
    while not on.wait(0.001):
        most.append(anonymous())
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
kept = dict(merger.tensors(Recipe(method, each, each, "model", 1.0, 0)))
on.set()
watcher.join()
print(max(most) - before - sum(t.numel() * t.element_size() for t in kept.values()))
"""
TENSORS, SIDE = 12, 768
"""Of the models that memory is measured with: float32 matrices and their side."""


def asked_of_memory():
    """The peak of anonymous memory beside the result, in tensors of the models, for few and many of them."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"{folder}/{i}.safetensors" for i in range(9)]
        for i, place in enumerate(places):
            generator = torch.Generator().manual_seed(i)
            save_file({f"{k}": torch.randn(SIDE, SIDE, generator=generator) for k in range(TENSORS)}, place)
        for method in METHODS:
            beside = {}
            for count in (2,) if method == "slerp" else (2, 8):
                command = [sys.executable, "-c", MEASURED, method, *places[: count + 1]]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                beside[count] = int(told) / (4 * SIDE * SIDE)
            print(f"memory, {method}: " + ", ".join(f"{n} models {each:.1f} tensors" for n, each in beside.items()))
            yield f"memory, {method}: tensors beside the result, at most", max(beside.values()), FEW


PARTS = {
    "map": asked_of_map, "nested": asked_of_nested, "bayesian": asked_of_bayesian,
    "frank-wolfe": asked_of_frank_wolfe, "mm-mo": asked_of_mmmo, "memory": asked_of_memory,
}  # fmt: skip
AT_MOST = ("points lost to irrelevant models", "at most")
FEW = 6
"""Tensors that may be held beside a merge, whatever the number of models."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/merging"), help="where scores are kept")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    store = asked.out / "scores.json"
    Kept.scores.update(json.loads(store.read_text()) if store.exists() else {})
    good = True
    for part in asked.parts or PARTS:
        for text, value, bound in PARTS[part]():
            most = text.endswith(AT_MOST) and "task arithmetic" not in text
            held = value <= bound if most else value >= bound
            good &= bool(held)
            print(f"{'PASS' if held else 'FAIL'} {text}: {value:.3f} ({'<=' if most else '>='} {bound})", flush=True)
        store.write_text(json.dumps(Kept.scores))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
