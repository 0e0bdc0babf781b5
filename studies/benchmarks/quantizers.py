"""Which quantizer? SmolLM2-135M at uniform widths, group 64, on text that no quantizer saw.

    python studies/benchmarks/quantizers.py                     everything; again, and it goes on where it stopped
    python studies/benchmarks/quantizers.py --only gptq,matgptq
    python studies/benchmarks/quantizers.py --show              run nothing, show what is finished

KL in nats a token at 2, 3 and 4 bits, perplexity at 8, and the seconds, of the clock and of the processors, that making
all four takes, in a cache of the benchmark's own. The calibration, which gptq and matgptq share, is its own line.
"gptq-8 sliced" reads the upper bits of GPTQ's 8-bit codes, "fisher knapsack" is the exact allocation on the sampled
Fisher sensitivities at the bytes of uniform 3 bits, with GPTQ's variants and before any search. "eora" repairs every
layer of "gptq" with rank 32, "rtn + eora" those of "rtn"; "bcq" has groups of 192, so that a scale for each bit takes
no more bytes than "rtn" does. "ranks" spends the same bytes on bits alone, and on bits and repairs as the Fisher
sensitivities say, and says which won. Prints what we ask as PASS or FAIL; exits with an error if something fails.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

import moopt
from moopt.algorithms.opening import configuration
from moopt.backend import cache
from moopt.backend.options import named, rank_of
from moopt.backend.quantizers import GPTQ, RTN, EoRA
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

WIDTHS, HELD_OUT, LIMIT = (2, 3, 4, 8), Fidelity(6144, "held-out"), 360


class SlicedGPTQ(GPTQ):
    """Slices of what GPTQ makes at 8 bits."""

    name, sliced = "gptq-8-sliced", True

    def quantize(self, weight, bits, group_size, inputs=None):
        return super().quantize(weight, 8, group_size, inputs).sliced(bits)


RANK = 32
QUANTIZERS = {
    "rtn": "rtn", "gptq": "gptq", "matgptq": "matgptq", "gptq-8 sliced": SlicedGPTQ(), "hqq": "hqq",
    "eora": EoRA(ranks=(0, RANK)), "rtn + eora": EoRA(RTN(), ranks=(0, RANK)), "bcq": "bcq",
}  # fmt: skip
GROUPS = {"bcq": 192}
LOW = ("eora", "rtn + eora", "bcq")
"""Measured at 2 and 3 bits, where there is something to win."""
UNITS = ("calibration", *QUANTIZERS, "fisher knapsack", "ranks")
TOKENS = 6144
"""Of the sensitivities of repairs: there are twelve options a decision."""
BUDGETS = ("uniform-2", "uniform-3", f"uniform-3+r{RANK}")


def problem(quantizer, bits=WIDTHS, group_size=64):
    made = BitAllocation("smollm2-135m", bits=bits, quantizer=quantizer, group_size=group_size)
    made.setup(moopt.Resources())
    return made


def timed(work):
    """Seconds of the clock and of the processors."""
    began = time.perf_counter(), time.process_time()
    work()
    return {"clock": time.perf_counter() - began[0], "processors": time.process_time() - began[1]}


def calibration():
    """What reading the text takes, and how much text."""
    found = problem("gptq")._ready.evaluator.candidate.calibration
    names = [w.name for w in problem("gptq").inventory.linears()]
    return {"tokens": found.tokens, "seconds": timed(lambda: [found.inputs(name) for name in names])}


def uniform(name):
    """Seconds to make all variants, and figures on held-out text at each width."""
    if name not in ("rtn", "hqq"):
        calibration()  # so that it is not counted
    made = problem(QUANTIZERS[name], group_size=GROUPS.get(name, 64))
    options = {bits: named(bits, max(made.quantizer.ranks)) for bits in WIDTHS if bits <= 3 or name not in LOW}
    candidate = made._ready.evaluator.candidate
    linears = [w.name for w in made.inventory.linears()]
    begun = any((cache.folder() / "variants").glob(f"*/{made.quantizer.key}-*"))  # by a run that was stopped: no figure
    seconds = timed(lambda: candidate.prepare({linear: tuple(options.values()) for linear in linears}))
    uniform = {bits: made.baselines()[f"uniform-{option}"] for bits, option in options.items()}
    figures = {bits: made.evaluate(config, HELD_OUT).values for bits, config in uniform.items()}
    return {
        "seconds": {} if begun else seconds,
        "kl": {b: v["kl"] for b, v in figures.items()},
        "perplexity": figures[8]["perplexity"] if 8 in figures else None,
        "mb": {bits: made.known(config)["size_mb"] for bits, config in uniform.items()},
    }


def knapsack():
    """The exact allocation at the bytes of uniform 3 bits."""
    made = problem("gptq", (2, 3, 4, 5, 6, 8))
    costs = made.costs()
    table = made.sensitivities("fisher", made.sensitivity.tokens)
    found = Knapsack(table, costs).at(int(costs[:, 1].sum()))
    return {"kl": {3: made.evaluate(configuration(made, found), HELD_OUT).values["kl"]}}


def ranks():
    """At the bytes of some uniform candidates: the candidate, the best of bits alone, and of bits and repairs."""
    made = problem(EoRA(ranks=(0, 8, RANK)), (2, 3, 4, 5))
    costs = made.costs()
    table = made.sensitivities("fisher", TOKENS)
    repaired = np.array([[rank_of(option) > 0 for option in d.options] for d in made.decided.values()])
    found = {}
    for budget in BUDGETS:
        uniform = made.baselines()[budget]
        places = [d.options.index(uniform[name]) for name, d in made.decided.items()]
        room = int(costs[np.arange(len(costs)), places].sum())
        both = Knapsack(table, costs).at(room)
        alone = configuration(made, Knapsack(np.where(repaired, np.inf, table), costs).at(room))
        configs = {"uniform": uniform, "bits": alone, "bits and repairs": configuration(made, both)}
        found[budget] = {
            "mb": made.known(uniform)["size_mb"],
            "decisions": len(both),
            "repaired": int(repaired[np.arange(len(both)), both].sum()),
            "kl": {name: made.evaluate(config, HELD_OUT).values["kl"] for name, config in configs.items()},
        }
    return {"budgets": found}


def unit(name):
    return {"calibration": calibration, "fisher knapsack": knapsack, "ranks": ranks}.get(name, lambda: uniform(name))()


def verdicts(found):
    """What we ask: a text, a figure, and the bound that it must stay under."""
    kl = {(name, int(b)): value for name, each in found.items() for b, value in each.get("kl", {}).items()}
    for bits in (2, 3, 4):
        for other in ("rtn", "hqq"):
            if ("gptq", bits) in kl and (other, bits) in kl:
                yield f"KL at {bits} bits, gptq over {other}", kl["gptq", bits] / kl[other, bits], 1.0
    if all(found.get(name, {}).get("seconds") for name in ("gptq", "calibration")):
        made = sum(found[name]["seconds"]["processors"] for name in ("gptq", "calibration"))
        yield "seconds of a processor for gptq at four widths, calibration included", made, LIMIT
    if {"matgptq", "gptq"} <= set(found):
        worse = found["matgptq"]["perplexity"] / found["gptq"]["perplexity"] - 1
        yield "perplexity at 8 bits, matgptq over gptq - 1", worse, 0.005
        yield "KL at 3 bits, matgptq over gptq", kl["matgptq", 3] / kl["gptq", 3], 1.25
    if {"matgptq", "gptq-8 sliced"} <= set(found):
        yield "KL at 3 bits, matgptq over gptq-8 sliced", kl["matgptq", 3] / kl["gptq-8 sliced", 3], 1.0
    for base, repaired in (("gptq", "eora"), ("rtn", "rtn + eora")):
        if {base, repaired} <= set(found):
            yield f"KL at 3 bits, {repaired} at rank {RANK} over {base}", kl[repaired, 3] / kl[base, 3], 0.7
    for bits in (2, 3) if all("mb" in found.get(name, {}) for name in ("bcq", "rtn")) else ():
        share = found["bcq"]["mb"][str(bits)] / found["rtn"]["mb"][str(bits)]
        yield f"bytes at {bits} bits, bcq over rtn", share, 1.0
        yield f"KL at {bits} bits, bcq over rtn", kl["bcq", bits] / kl["rtn", bits], 1.0
    if {"fisher knapsack", "rtn"} <= set(found):
        yield "KL at 3 bits, fisher knapsack of gptq over uniform rtn", kl["fisher knapsack", 3] / kl["rtn", 3], 0.6


def report(found):
    """Print the table and the verdicts; whether nothing falls short."""
    print(f"{'':18}{'KL 2':>9}{'KL 3':>9}{'KL 4':>9}{'KL 8':>9}{'ppl 8':>9}{'seconds':>9}{'of processors':>15}")
    for name, each in found.items():
        kl, seconds = each.get("kl", {}), each.get("seconds", {})
        cells = [kl.get(str(b), np.nan) for b in WIDTHS] + [each.get("perplexity") or np.nan]
        print(f"{name:18}" + "".join(f"{c:9.4f}" for c in cells), end="")
        print(f"{seconds.get('clock', np.nan):9.0f}{seconds.get('processors', np.nan):15.0f}")
    for budget, each in found.get("ranks", {}).get("budgets", {}).items():
        figures = ", ".join(f"{name} {value:.4f}" for name, value in each["kl"].items())
        taken = f"{each['repaired']} of {each['decisions']} decisions take a repair"
        won = "nobody" if len(set(each["kl"].values())) == 1 else min(each["kl"], key=each["kl"].get)
        print(f"KL at the {each['mb']:.1f} MB of {budget}: {figures} ({taken}); {won} won")
    good = True
    for text, value, bound in verdicts(found):
        good = good and value < bound
        print(f"{'PASS' if value < bound else 'FAIL'} {text}: {value:.4f} (< {bound})")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quantizers"), help="where figures and the cache are kept"
    )
    parser.add_argument("--only", default="", help=f"with commas between: {', '.join(UNITS)}")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    only = [name for name in asked.only.split(",") if name]
    asked.out.mkdir(parents=True, exist_ok=True)
    usual, own = cache.folder(), (asked.out / "cache").resolve()
    for kept in ("models", "kernels"):
        (usual / kept).mkdir(parents=True, exist_ok=True)
        own.mkdir(exist_ok=True)
        if not (own / kept).exists():
            (own / kept).symlink_to(usual.resolve() / kept)
    os.environ["MOOPT_CACHE"] = str(own)
    for name in UNITS if not asked.show else ():
        path = asked.out / f"{name}.json"
        if not path.exists() and (not only or name in only):
            path.write_text(json.dumps(unit(name)))
            print(f"{name}: done", file=sys.stderr)
    paths = {name: asked.out / f"{name}.json" for name in UNITS}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    sys.exit(0 if report(found) else 1)


if __name__ == "__main__":
    main()
