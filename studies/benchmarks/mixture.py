"""Are experts worth a decision each? A small trained mixture of experts at low widths, on held-out text.

    python studies/benchmarks/mixture.py            the model of studies/train_mixture.py, trained if it is not there

Uniform widths, rounded to nearest and by GPTQ. Then, at the bytes of uniform 3 bits and with GPTQ's variants, the exact
allocation on the sampled Fisher sensitivities, for several draws of these: every expert decided alone, or all of a
block together. Last, how often each expert is used, the bits it got, and the rank correlation of both. Asks for
nothing: it prints what there is.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import moopt
from moopt.algorithms.opening import configuration
from moopt.backend import models
from moopt.backend.experts import Experts
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

WIDTHS, CONTEXT, HELD_OUT = (2, 3, 4, 5, 6, 8), 256, Fidelity(16_384, "held-out")
TIES = {"experts alone": "fused", "experts of a block together": "experts"}


def loaded(folder, **arguments):
    problem = BitAllocation(str(folder), bits=WIDTHS, text="prose", context=CONTEXT, **arguments)
    problem.setup(moopt.Resources())
    return problem


def kl(problem, config):
    return problem.evaluate(config, HELD_OUT).values["kl"]


def allocated(problem):
    """The exact allocation on the sampled Fisher sensitivities at the bytes of uniform 3 bits."""
    table, costs = problem.sensitivities("fisher", problem.sensitivity.tokens), problem.costs()
    return configuration(problem, Knapsack(table, costs).at(int(costs[:, WIDTHS.index(3)].sum())))


def usage(folder, ids):
    """The share of the tokens that each expert is given, by its name."""
    model, given = models.load_model(str(folder)), {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            module.register_forward_pre_hook(lambda _, inputs, name=name: given.update({name: inputs[1]}))
    with torch.inference_mode():
        model(input_ids=ids)
    counts = {
        name: chosen.flatten().bincount(minlength=len(model.get_submodule(name))) for name, chosen in given.items()
    }
    return {f"{name}.{i}": int(n) / ids.numel() for name, each in counts.items() for i, n in enumerate(each)}


def mean_bits(problem, config, experts):
    """Bits a weight of each expert."""
    widths = problem.widths(config)
    sizes = {w.name: w.count for w in problem.inventory.weights}
    found = []
    for expert in experts:
        own = [name for name in widths if name.startswith(f"{expert}.")]
        found.append(np.average([widths[name] for name in own], weights=[sizes[name] for name in own]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/mixture"), help="of the trained model")
    parser.add_argument("--draws", type=int, default=3, help="of the sensitivities' text and labels")
    asked = parser.parse_args()
    if not (asked.folder / "config.json").exists():
        script = Path(__file__).parents[1] / "train_mixture.py"
        subprocess.run([sys.executable, str(script), str(asked.folder)], check=True)
    print("KL on held-out text" + "".join(f"{b:>8} bits" for b in (2, 3, 4)))
    for quantizer in ("rtn", "gptq"):
        problem = loaded(asked.folder, quantizer=quantizer)
        found = [kl(problem, problem.baselines()[f"uniform-{b}"]) for b in (2, 3, 4)]
        print(f"{'uniform, ' + quantizer:19}" + "".join(f"{value:13.4f}" for value in found), flush=True)
    shares = usage(asked.folder, problem._ready.evaluator.ids(HELD_OUT))
    print(f"\nAt the bytes of 3 bits, gptq{'':9}decisions   KL of each draw   Spearman of use and bits")
    for name, tie in TIES.items():
        rows = []
        for draw in range(asked.draws):
            problem = loaded(asked.folder, quantizer="gptq", tie=tie, draw=draw)
            config = allocated(problem)
            rows.append((kl(problem, config), mean_bits(problem, config, shares)))
        ranks = [spearmanr(list(shares.values()), bits).statistic for _, bits in rows]
        print(f"{name:27}{len(problem.space):10}   " + " ".join(f"{found:.4f}" for found, _ in rows), end="   ")
        print(" ".join(f"{rank:.2f}" for rank in ranks), flush=True)
        if tie == "fused":
            alone = dict(zip(shares, rows[0][1], strict=True))
    print("\nEach expert's share of the tokens and its bits, experts alone, first draw")
    for block in sorted({name.rpartition(".")[0] for name in shares}):
        own = sorted((name for name in shares if name.startswith(f"{block}.")), key=shares.get, reverse=True)
        print(f"{block.removesuffix('.mlp.experts'):16}" + "  ".join(f"{shares[n]:.0%} {alone[n]:.1f}" for n in own))


if __name__ == "__main__":
    main()
