"""Keys and values at few bits: what a search of pairs is worth, and what packed storage is worth to who generates.

    python studies/benchmarks/kv_cache.py                   all parts, for hours; again, and it goes on
    python studies/benchmarks/kv_cache.py additive decode   some of them

additive     NSGA-II on the sum of single layers' errors, beside the exact front of that sum
correlation  whether that sum ranks random assignments as the model does
front        the best pairs found within 4.0 and 3.25 bits against uniform ones, on held-out text
groups       pruned and clustered searches beside searches of single layers, at equal evaluations
decode       tokens a second after 8,064, of 4-bit weights, from packed and from 16-bit caches; what `front` found too

SmolLM2-135M, contexts of 2,048 tokens, KIVI's scheme. Prints what we ask of ourselves as PASS or FAIL.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import StaticCache

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2
from moopt.backend.kv import Pair, load_preset, packed_cache, prune
from moopt.backend.kv.stopwatch import fill
from moopt.bench import kept, runner
from moopt.bench.races import Race
from moopt.bench.scores import target
from moopt.budgets import Knapsack
from moopt.problem import Evaluation, Fidelity, Objective, Problem, Resources
from moopt.space import Ordinal, Space
from moopt_problems import BitAllocation, KVCachePrecision

KEPT = Path(__file__).parent / "kept" / "kv_cache.parquet"
HELD_OUT, TRIALS = Fidelity(8_192, "held-out"), 60
PROMPT, TOKENS, ROUNDS = 8_064, 4, 9
problem = partial(
    KVCachePrecision, "smollm2-135m", context=2_048, tokens=2_048, profile_tokens=2_048, held_out=0, validation=0
)
KV4, SCHEMES = Pair(4, 4), ("per-token", "kivi")
SHARES = {4.0: 1.0, 3.25: 0.7}
"""What the best within so many nominal bits may lose: a share of KV4's loss, or of its best uniform rival's."""


class Additive(Problem):
    """The sum of single layers' errors of attention's output, and the mean bits, over the pairs that pruning leaves."""

    def __init__(self, profile):
        self.pairs, self.table, self.pruned = profile.pairs, profile.e_o, prune(profile, "e_o")
        self.space = Space({str(layer): Ordinal(*map(str, pairs)) for layer, pairs in enumerate(self.pruned)})
        self.objectives = [Objective("error"), Objective("bits", known=True)]
        self._places = {str(pair): place for place, pair in enumerate(self.pairs)}

    def _chosen(self, config):
        return [self._places[config[name]] for name in self.space.names]

    def evaluate(self, config, fidelity):
        return Evaluation({"error": float(self.table[np.arange(len(self.table)), self._chosen(config)].sum())})

    def known(self, config):
        return {"bits": float(np.mean([self.pairs[place].bits for place in self._chosen(config)]))}


def verdict(text, value, sign, bound):
    held = {">=": value >= bound, "<": value < bound}[sign]
    print(f"{'PASS' if held else 'FAIL'} {text}: {value:.4f} ({sign} {bound})", flush=True)
    return held


def additive(out, seeds):
    """The hypervolume of NSGA-II's front as a share of the exact one."""
    made = Additive(problem().profile())
    costs = np.array([[round(2 * pair.bits) if pair in left else -1 for pair in made.pairs] for left in made.pruned])
    bits, errors = Knapsack(np.where(costs < 0, np.inf, made.table), costs).front()
    exact = np.column_stack([errors, bits / (2 * len(made.table))])
    reference = pareto.reference_point(exact)
    shares = []
    for seed in range(10):
        found = moopt.Study("additive", made, NSGA2(100), seed=seed).run(trials=5_000).history
        shares.append(pareto.hypervolume(found.values(found.front()), reference) / pareto.hypervolume(exact, reference))
    print(f"{len(made.table)} layers, {sum(map(len, made.pruned))} pairs, shares: {np.round(shares, 4)}")
    return verdict("NSGA-II's hypervolume over the exact front's, median of 10 seeds", np.median(shares), ">=", 0.99)


def correlation(out, seeds):
    """Rank correlation of summed errors with the KL divergence of 50 random assignments."""
    made = problem(groups="layers")
    made.setup(Resources(threads=1))
    profile, rng = made.profile(), np.random.default_rng(0)
    places = {pair: place for place, pair in enumerate(profile.pairs)}
    configs = [made.space.sample(rng) for _ in range(50)]
    kl = [made.evaluate(config, made.fidelity).values["kl"] for config in configs]
    for name in ("e_o", "o_norm", "fisher"):
        errors = profile.of(name)
        sums = [sum(errors[layer, places[p]] for layer, p in enumerate(made.pairs(config))) for config in configs]
        draws = rng.integers(50, size=(2_000, 50))
        drawn = [stats.spearmanr(np.array(sums)[d], np.array(kl)[d]).statistic for d in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        found = stats.spearmanr(sums, kl).statistic
        print(f"rank correlation of the sum of {name} with KL, 50 assignments: {found:.3f} [{low:.3f}, {high:.3f}]")
    return True


def front(out, seeds):
    """The best of a search within 4.0 nominal bits against KV4, and within 3.25 against uniform pairs of its bytes."""
    ratios = {scheme: _front(out, scheme) for scheme in SCHEMES}
    good = True
    for bits, share in SHARES.items():
        scheme = min(ratios, key=lambda name: ratios[name][bits])
        good &= verdict(f"at most {bits} bits: KL over the uniform pair's, {scheme}", ratios[scheme][bits], "<", share)
    return good


def preset(out, scheme, bits):
    """Where the best pairs that a search found within so many bits are kept."""
    return out / f"{scheme}, {bits} bits.json"


def _front(out, scheme):
    named = ("KV2", "K2V4", "K4V2", "KV4")
    uniform = problem(groups={"0-29": named}, scheme=scheme, sensitivities=None)
    uniform.setup(Resources(threads=1))
    configs = {Pair.of(name): {uniform.space.names[0]: name} for name in named}
    losses = {pair: np.array(uniform.evaluate(config, HELD_OUT).samples["kl"]) for pair, config in configs.items()}
    sizes = {pair: uniform.bytes(config) for pair, config in configs.items()}
    for pair, kl in losses.items():
        print(f"{scheme}, uniform {pair!s:5}{pair.bits:6.3f} bits{sizes[pair] / 1e6:8.3f} MB  KL {kl.mean():.5f}")
    made = problem(groups="pruned", objectives=("kl", "kv_bytes", "kv_bits"), scheme=scheme)
    study = moopt.Study("kv", made, "auto", storage=out / f"{scheme}.journal", resources=Resources(threads=1))
    study.run(trials=TRIALS)
    print(f"{scheme}: {study.history.tokens:,} forward tokens, {len(study.history.feasible())} candidates")
    ratios = {}
    for bits in SHARES:
        best = study.pick(f"kv_bits <= {bits}")
        own, size = np.array(made.evaluate(best.config, HELD_OUT).samples["kl"]), made.bytes(best.config)
        fitting = [KV4] if bits == 4.0 else [pair for pair in sizes if sizes[pair] <= size]
        rival = min(fitting, key=lambda pair: losses[pair].mean())
        ratios[bits] = own.mean() / losses[rival].mean()
        made.save(best.config, preset(out, scheme, bits))
        print(
            f"{scheme}, searched{best.values['kv_bits']:9.3f} bits{size / 1e6:8.3f} MB  KL {own.mean():.5f}: "
            f"{ratios[bits]:.3f} of uniform {rival}'s"
        )
    return ratios


def races(seeds):
    how = {"sensitivities": None}
    for name, groups in (("kv groups", "kvtuner"), ("kv layers", "layers")):
        yield Race(name, partial(problem, groups=groups, **how), 100, ["nsga2"], range(seeds))


def groups(out, seeds):
    """Hypervolumes at 100 evaluations of a grouped and of a raw search, by the best front of both."""
    chosen = list(races(seeds))
    kept.restore(KEPT, out)
    for seed in range(seeds):
        for race in chosen:
            each = Race(race.name, race.make, race.evaluations, race.algorithms, [seed])
            units = runner.run([each], out, 1, lambda u, *_: print(f"{u.race}, seed {u.seed}: {u.seconds:.0f} s"))
            kept.add(KEPT, units)
    found = runner.finished(chosen, out)
    everything = Race("both", chosen[0].make, 100, ["nsga2"])
    merged = target(everything, [replace(unit, race="both") for unit in found])
    shares = {race.name: [merged.share(u.front(100)) for u in found if u.race == race.name] for race in chosen}
    for name, each in shares.items():
        print(f"{name}: {len(each)} seeds, median share of the best hypervolume {np.median(each):.4f}")
    pairs = list(zip(*shares.values(), strict=False))
    p = stats.wilcoxon(*zip(*pairs, strict=True), alternative="greater").pvalue if len(pairs) > 1 else 1.0
    grouped, raw = map(np.median, shares.values())
    good = verdict("hypervolume of groups over layers, medians", grouped / raw, ">=", 1.0)
    return verdict(f"Wilcoxon's p over {len(pairs)} seeds", p, "<", 0.05) and good


def decode(out, seeds):
    """Tokens a second after a long prompt, the caches in turn."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = BitAllocation("smollm2-135m", sensitivities=None, held_out=0, validation=0)
        path = weights.save(weights.baselines()["uniform-4"], Path(folder) / "4.safetensors")
        model = moopt.load(path, device="cpu")
    made = {str(pair): [pair] * 30 for pair in (Pair(16, 16), Pair(8, 8), KV4, Pair(2, 2))}
    for scheme, bits in product(SCHEMES, SHARES):
        if (path := preset(out, scheme, bits)).exists():
            made[f"{scheme}, {bits} bits"] = load_preset(path)
    caches = {name: packed_cache(model, pairs, room=PROMPT + 64) for name, pairs in made.items()}
    caches["transformers"] = StaticCache(model.config, max_cache_len=PROMPT + TOKENS)
    for cache in caches.values():
        fill(cache, model, PROMPT)
    ids, times = torch.zeros(1, 1, dtype=torch.long), {name: [] for name in caches}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, cache in caches.items():
                began = time.process_time()
                for _ in range(TOKENS):
                    model(ids, past_key_values=cache)
                times[name].append((time.process_time() - began) / TOKENS)
                if name == "transformers":  # cannot be cropped
                    cache.reset()
                    fill(cache, model, PROMPT)
                else:
                    cache.crop(-TOKENS)
    speed = {name: 1 / statistics.median(each[1:]) for name, each in times.items()}
    for name, cache in caches.items():
        size = cache.nbytes if name in made else sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
        print(f"{name:20}{size / 1e6:8.1f} MB {speed[name]:7.2f} tokens/s of the processor's time")
    best = max(speed["KV16"], speed["transformers"])
    return verdict(f"K4V4 over the better 16-bit cache after {PROMPT:,} tokens", speed["KV4"] / best, ">=", 1.3)


PARTS = {"additive": additive, "correlation": correlation, "front": front, "groups": groups, "decode": decode}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/kv-cache"), help="where studies and units are kept")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    good = True
    for name in asked.parts or PARTS:
        print(f"\n== {name}")
        good = PARTS[name](asked.out, asked.seeds) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
