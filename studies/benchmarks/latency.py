"""How well a sum over single layers predicts the time of whole packed models, one pinned thread.

    python studies/benchmarks/latency.py

Uniform and random candidates are predicted from the table of kernel calls (made first, where this machine has none
yet) and measured whole. Prints both, and the relative errors. It means something on a quiet machine only.
"""

import platform
import statistics
from datetime import date

import numpy as np
import torch

import moopt
from moopt_kernels import calls
from moopt_problems import BitAllocation

CANDIDATES = 6
"""Random candidates beside the uniform ones."""

if __name__ == "__main__":
    problem = BitAllocation("smollm2-135m", objectives=("kl", "decode_ms", "prefill_ms"), sensitivities=None)
    problem.setup(moopt.Resources(device="cpu", threads=1))
    rng = np.random.default_rng(0)
    configs = {**problem.baselines(), **{f"random-{i}": problem.space.sample(rng) for i in range(CANDIDATES)}}
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}; {problem.objectives[1].unit}")
    errors = {"decode_ms": [], "prefill_ms": []}
    for name, config in configs.items():
        found = problem.evaluate(config, moopt.Fidelity(0, "latency"))
        line = [f"{name:12}"]
        for figure, measured in found.values.items():
            predicted, spread = found.attributes[f"{figure} predicted"], found.attributes[f"{figure} spread"]
            errors[figure].append(abs(predicted / measured - 1))
            line.append(f"{figure} measured {measured:8.2f} ± {spread:.2f}, predicted {predicted:8.2f}")
        print("  ".join(line), flush=True)
    for figure, found in errors.items():
        print(f"{figure}: relative error, median {statistics.median(found):.1%}, worst {max(found):.1%}")
    print(f"implementation: {', '.join(sorted({where for _, where in calls()}))}")
    raise SystemExit(any(where == "reference" for name, where in calls() if name == "quantized_linear"))
