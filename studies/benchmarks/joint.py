"""One search over merge, bits and cache against one after the other, for the same forward tokens, on SmolLM2.

    python studies/benchmarks/joint.py                  3 seeds; again, and it goes on where it stopped; hours
    python studies/benchmarks/joint.py --seeds 1        one of them
    python studies/benchmarks/joint.py --show           run nothing, show what is finished

Three models tuned to prose, docstrings and code (`tuned_texts`) become one. The pipeline is what people do: it merges
at full precision and keeps the merge of the least loss; it allocates bits to that; it picks three sizes along that
front, and searches the cache's pairs for each. Every measurement counts, sensitivities included. What a search
measured is kept in a Parquet file beside this script. Prints what we ask as PASS or FAIL.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import moopt
from moopt import pareto
from moopt.algorithms import QNEHVI
from moopt.backend.merging.tasks import TextLoss
from moopt.bench import parquet
from moopt_problems import BitAllocation, Joint, KVCachePrecision, ModelMerge
from moopt_problems.synthetic import tuned_texts

KEPT = Path(__file__).parent / "kept" / "joint.parquet"
COLUMNS = ["arm", "seed", "stage", "spent", "loss", "size_mb", "kv_bytes"]
OBJECTIVES = COLUMNS[-3:]
TRIAL = 2048
"""Tokens of an evaluation."""
TOKENS = 80 * TRIAL
SHARES = {"merge": 0.2, "bits": 0.4, "kv": 0.4}
"""What each stage of the pipeline gets of the tokens."""
SIZES = 3
"""Points of the front of bits that the pipeline searches the cache for."""
SEEDS, DRAWS = 3, 2000
"""Seeds that an interval needs, and its bootstrap draws."""


def joint(seed):
    folders = tuned_texts.tuned()
    base = folders.pop("base")
    quiet = {"held_out": 0, "validation": 0}
    parts = {
        "merge": ModelMerge(folders, [TextLoss("loss", "mix", TRIAL)], base=base),
        "bits": BitAllocation(
            base, bits=(2, 3, 4, 8), objectives=["size_mb"], tie="block", sensitivity_tokens=4_096, draw=seed, **quiet
        ),
        "kv": KVCachePrecision(
            base, objectives=["kv_bytes"], groups="layers", bits=(2, 4, 8), profile_tokens=2_048, **quiet
        ),
    }
    return Joint(parts, tokens=TRIAL, **quiet)


class Stage(moopt.Problem):
    """One part of a joint problem is searched, all others are fixed; it opens as that part does."""

    def __init__(self, whole, part, fixed):
        self.whole, self.part, self.fixed = whole, whole.parts[part], fixed
        self.prefix = f"{part}/"
        self.space = self.part.space
        known = {o.name for o in self.part.objectives if o.known}
        self.objectives = [o for o in whole.objectives if not o.known or o.name in known]
        self.fidelity = whole.fidelity
        self.sensitivity = self.part.sensitivity
        if self.sensitivity is not None:
            self.costs, self.sensitivities = self.part.costs, self._sensitivities

    def config(self, own):
        return {**self.fixed, **{self.prefix + name: value for name, value in own.items()}}

    def evaluate(self, config, fidelity):
        return self.whole.evaluate(self.config(config), fidelity)

    def known(self, config):
        return self.part.known(config)

    def baselines(self):
        return self.part.baselines()

    def forward_tokens(self, kind, fidelity):
        return (self.part if kind == "sensitivity" else self.whole).forward_tokens(kind, fidelity)

    def _sensitivities(self, method, tokens):
        return self.part.sensitivities(method, tokens)


def search(problem, tokens, seed):
    """The trials that a search of so many tokens finished, and what it spent."""
    study = moopt.Study("joint", problem, QNEHVI(), seed=seed, resources=moopt.Resources(threads=1))
    history = study.run(tokens=tokens).history
    return history, sum(event.tokens for event in history.events)


def rows(history, arm, seed, stage, whole, config, before):
    """What was measured, as rows; `before` is what was spent before."""
    found, spent = [], before
    trials = {trial.number: trial for trial in history.feasible()}
    for event in history.events:
        spent += event.tokens
        trial = trials.get(event.job.trial)
        if event.outcome is not None and trial is not None and event.job.kind == "evaluate":
            values = {"loss": trial.values["loss"], **whole.known(config(trial.config))}
            found.append({"arm": arm, "seed": seed, "stage": stage, "spent": spent, **values})
    return found


def together(seed):
    whole = joint(seed)
    history, _ = search(whole, TOKENS, seed)
    return rows(history, "joint", seed, "joint", whole, dict, 0)


def one_after_another(seed):
    whole = joint(seed)
    fixed, found, spent = dict(whole.baselines()["plain"]), [], 0
    for stage in ("merge", "bits"):
        problem = Stage(whole, stage, fixed)
        history, cost = search(problem, int(SHARES[stage] * TOKENS), seed)
        found += rows(history, "pipeline", seed, stage, whole, problem.config, spent)
        spent += cost
        if stage == "merge":
            fixed = problem.config(min(history.feasible(), key=lambda trial: trial.values["loss"]).config)
    front = history.front()
    places = sorted({*np.linspace(0, len(front) - 1, SIZES + 2).round().astype(int)[1:-1]})
    for left, trial in zip(range(len(places), 0, -1), (front[i] for i in places), strict=True):
        stage = Stage(whole, "kv", problem.config(trial.config))
        history, cost = search(stage, (TOKENS - spent) // left, seed)
        found += rows(history, "pipeline", seed, "kv", whole, stage.config, spent)
        spent += cost
    return found


ARMS = {"joint": together, "pipeline": one_after_another}


def front(kept, arm, seed):
    own = kept[(kept["arm"] == arm) & (kept["seed"] == seed)][OBJECTIVES].to_numpy(dtype=float)
    return own[pareto.nondominated(own)]


def compared(kept):
    """A line a seed: the shares of the pipeline's points that the joint front has or beats, and both volumes."""
    for seed in sorted(set(kept["seed"])):
        ours, theirs = (front(kept, arm, seed) for arm in ARMS)
        if not len(ours) or not len(theirs):
            continue
        logs = [np.log(each) for each in (ours, theirs)]
        corner = np.vstack(logs).max(axis=0)
        beaten = np.mean([(ours <= point + 1e-9).all(axis=1).any() for point in theirs])
        back = np.mean([(theirs <= point + 1e-9).all(axis=1).any() for point in ours])
        volumes = [pareto.hypervolume(each, corner) for each in logs]
        yield {
            "seed": seed, "points": len(ours), "pipeline's points": len(theirs), "beaten": beaten, "beaten by it": back,
            "volume over the pipeline's": volumes[0] / volumes[1],
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", choices=list(ARMS), help="one arm")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--show", action="store_true", help="run nothing; show what is kept")
    asked = parser.parse_args()
    read = partial(parquet.read, asked.kept, COLUMNS, "joint searches")
    for seed in range(0 if asked.show else asked.seeds):
        for arm, run in ARMS.items():
            kept = read()
            if asked.only in (None, arm) and not ((kept["arm"] == arm) & (kept["seed"] == seed)).any():
                found = pd.DataFrame(run(seed))
                parquet.update(asked.kept, lambda found=found: pd.concat([read(), found], ignore_index=True))
                print(f"{arm}, seed {seed}: {len(found)} trials", file=sys.stderr)
    table = pd.DataFrame(compared(read()))
    if table.empty:
        sys.exit("Nothing is finished yet.")
    print(table.to_string(index=False, float_format="{:.4f}".format))
    if len(table) < SEEDS:
        sys.exit(f"Not judged: {len(table)} of {SEEDS} seeds are finished.")
    drawn = np.random.default_rng(0).choice(table["volume over the pipeline's"], (DRAWS, len(table))).mean(axis=1)
    checks = [
        ("share of the pipeline's points that the joint front has or beats, median", table["beaten"].median(), 0.8),
        ("gain in volume, the lower end of its interval over seeds", float(np.quantile(drawn, 0.025)) - 1, 0.0),
    ]
    for text, value, bound in checks:
        print(f"{'PASS' if value >= bound else 'FAIL'} {text}: {value:.3f} (>= {bound})")
    sys.exit(0 if all(value >= bound for _, value, bound in checks) else 1)


if __name__ == "__main__":
    main()
