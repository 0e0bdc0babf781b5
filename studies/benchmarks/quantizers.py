"""Which quantizer? SmolLM2-135M at uniform widths, group 64, on text that no quantizer saw.

    python studies/benchmarks/quantizers.py                     everything; again, and it goes on where it stopped
    python studies/benchmarks/quantizers.py --only gptq,matgptq
    python studies/benchmarks/quantizers.py --show              run nothing, show what is finished

KL in nats a token at 2, 3 and 4 bits, perplexity at 8, and the seconds, of the clock and of the processors, that making
all four takes, in a cache of the benchmark's own. The calibration, which gptq and matgptq share, is its own line.
"gptq-8 sliced" reads the upper bits of GPTQ's 8-bit codes, "fisher knapsack" is the exact allocation on the sampled
Fisher sensitivities at the bytes of uniform 3 bits, with GPTQ's variants and before any search. Prints what we ask as
PASS or FAIL; exits with an error if something fails.
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
from moopt.backend.quantizers import GPTQ
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

WIDTHS, HELD_OUT, LIMIT = (2, 3, 4, 8), Fidelity(6144, "held-out"), 360


class SlicedGPTQ(GPTQ):
    """Slices of what GPTQ makes at 8 bits."""

    name, sliced = "gptq-8-sliced", True

    def quantize(self, weight, bits, group_size, inputs=None):
        return super().quantize(weight, 8, group_size, inputs).sliced(bits)


QUANTIZERS = {"rtn": "rtn", "gptq": "gptq", "matgptq": "matgptq", "gptq-8 sliced": SlicedGPTQ(), "hqq": "hqq"}
UNITS = ("calibration", *QUANTIZERS, "fisher knapsack")


def problem(quantizer, bits=WIDTHS):
    made = BitAllocation("smollm2-135m", bits=bits, quantizer=quantizer)
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
    made = problem(QUANTIZERS[name])
    candidate = made._ready.evaluator.candidate
    linears = [w.name for w in made.inventory.linears()]
    begun = any((cache.folder() / "variants").glob(f"*/{made.quantizer.key}-*"))  # by a run that was stopped: no figure
    seconds = timed(lambda: candidate.prepare({linear: WIDTHS for linear in linears}))
    figures = {bits: made.evaluate(made.baselines()[f"uniform-{bits}"], HELD_OUT).values for bits in WIDTHS}
    return {
        "seconds": {} if begun else seconds,
        "kl": {b: v["kl"] for b, v in figures.items()},
        "perplexity": figures[8]["perplexity"],
    }


def knapsack():
    """The exact allocation at the bytes of uniform 3 bits."""
    made = problem("gptq", (2, 3, 4, 5, 6, 8))
    costs = made.costs()
    table = made.sensitivities("fisher", made.sensitivity.tokens)
    found = Knapsack(table, costs).at(int(costs[:, 1].sum()))
    return {"kl": {3: made.evaluate(configuration(made, found), HELD_OUT).values["kl"]}}


def unit(name):
    return {"calibration": calibration, "fisher knapsack": knapsack}.get(name, lambda: uniform(name))()


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
    if {"fisher knapsack", "rtn"} <= set(found):
        yield "KL at 3 bits, fisher knapsack of gptq over uniform rtn", kl["fisher knapsack", 3] / kl["rtn", 3], 0.6


def report(found):
    """Print the table and the verdicts; whether nothing falls short."""
    print(f"{'':18}{'KL 2':>9}{'KL 3':>9}{'KL 4':>9}{'KL 8':>9}{'ppl 8':>9}{'seconds':>9}{'of processors':>15}")
    for name, each in found.items():
        kl, seconds = each.get("kl", {}), each.get("seconds", {})
        cells = [kl.get(str(b), np.nan) for b in WIDTHS] + [each.get("perplexity", np.nan)]
        print(f"{name:18}" + "".join(f"{c:9.4f}" for c in cells), end="")
        print(f"{seconds.get('clock', np.nan):9.0f}{seconds.get('processors', np.nan):15.0f}")
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
