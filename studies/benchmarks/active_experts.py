"""What is lost when experts get fewer bits, or are dropped while a mixture runs? MC-MoE's two parts, on held-out text.

    python studies/benchmarks/active_experts.py     the model of studies/train_mixture.py, trained if it is not there

First the experts' widths at the same sum, with GPTQ's variants at 2, 3 and 4 bits and everything else at 8: uniform,
and by MC-MoE's programme at several exponents of the errors. Then the model as it is, pruned: thresholds that are
quantiles of the calibration text's ratios of weights, in all blocks or the less sensitive ones, with 2% of the tokens
protected or none, and active parameters beside KL. Then both together. Asks for nothing: it prints what there is.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import moopt
from moopt.backend import pruning, routing
from moopt.mixtures import expert_losses, expert_widths
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

WIDTHS, CONTEXT, HELD_OUT = (2, 3, 4), 256, Fidelity(16_384, "held-out")


def loaded(folder):
    problem = BitAllocation(str(folder), bits=(2, 3, 4, 8), text="prose", context=CONTEXT, quantizer="gptq")
    problem.setup(moopt.Resources())
    return problem, problem._ready.evaluator


def allocated(blocks, budget, gamma):
    """Each expert's matrices at the widths of the programme."""
    found = {}
    for block in blocks:
        losses = expert_losses(block.activations, block.weights, block.errors, gamma=gamma)
        found |= block.options(expert_widths(losses, budget, WIDTHS).tolist())
    return found


def widths_of_experts(problem, evaluator, ids):
    """Print the KL of each allocation; the options of the best exponent's at 3 bits."""
    rest = {w.name: 8 for w in problem.inventory.linears()}
    blocks = routing.measure(evaluator.candidate, ids, WIDTHS)
    experts = len(blocks[0].activations)
    uniform = f"{'uniform':22}"
    for bits in WIDTHS:
        options = {name: bits for block in blocks for name in block.options((bits,) * experts)}
        uniform += f"{evaluator.measure(rest | options, HELD_OUT).values['kl']:10.4f}"
        uniform += " " * 10 if bits != WIDTHS[-1] else ""
    means = (2.0, 2.5, 3.0, 3.5, 4.0)
    print(f"{'KL at bits an expert':22}" + "".join(f"{mean:10.1f}" for mean in means))
    print(uniform, flush=True)
    for gamma in (1.0, 2.0, 3.0):
        line = f"{f'programme, gamma {gamma:g}':22}" + " " * 10
        for mean in means[1:-1]:
            options = rest | allocated(blocks, int(mean * experts), gamma)
            line += f"{evaluator.measure(options, HELD_OUT).values['kl']:10.4f}"
        print(line, flush=True)
    return rest | allocated(blocks, 3 * experts, 2.0)


def pruned(evaluator, ids, options):
    """Print what pruning does to the model as it is, and to a candidate."""
    model = evaluator.candidate.model
    evaluator.use({})
    whole = pruning.measure(evaluator, {}, HELD_OUT, {}).values["active_parameters"]
    print(f"\n{'experts dropped':34}{'active M':>10}{'share':>8}{'KL':>10}{'KL at 3 bits':>14}")
    cases = [("none", {}, 0.02), ("none, but attention run plainly", None, 0.02)]
    for quantile in (0.25, 0.5, 0.75, 1.0):
        every = pruning.calibrated_thresholds(model, ids, quantile)
        losses = pruning.losses_alone(model, ids, every)
        if quantile == 0.5:
            said = ", ".join(f"{name.split('.')[2]}: {every[name]:.2f}, KL {losses[name]:.4f}" for name in every)
        cases += [
            (f"{quantile:.0%} of tokens, all blocks", every, 0.02),
            (f"{quantile:.0%} of tokens, all, unprotected", every, 0.0),
            (f"{quantile:.0%} of tokens, two thirds", pruning.least_sensitive(every, losses, 2 / 3), 0.02),
        ]
    tiny = dict.fromkeys(every, 1e-9)
    for name, thresholds, protect in cases:
        found = [
            pruning.measure(evaluator, each, HELD_OUT, tiny if thresholds is None else thresholds, protect).values
            for each in ({}, options)
        ]
        active = found[0]["active_parameters"]
        print(f"{name:34}{active:10.3f}{active / whole:8.1%}{found[0]['kl']:10.4f}{found[1]['kl']:14.4f}", flush=True)
    print(f"Median thresholds of the blocks, and what each loses when pruned alone: {said}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/mixture"), help="of the trained model")
    asked = parser.parse_args()
    if not (asked.folder / "config.json").exists():
        script = Path(__file__).parents[1] / "train_mixture.py"
        subprocess.run([sys.executable, str(script), str(asked.folder)], check=True)
    problem, evaluator = loaded(asked.folder)
    ids = evaluator.tokens.draws("search", 16_384, CONTEXT, seed=1)
    pruned(evaluator, ids, widths_of_experts(problem, evaluator, ids))


if __name__ == "__main__":
    main()
