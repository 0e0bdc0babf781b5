"""What evaluating a candidate costs beside a plain forward pass of the same tokens, logits included, in one run.

    python studies/benchmarks/evaluation.py

A candidate's cost is everything: switching all its widths, the forward pass on packed codes, the KL divergence. The
plain pass is the original's, dense. Both run in bfloat16, in turn. Exits with an error if the
ratio is above its limit or the slow reference of a kernel ran.
"""

import platform
import statistics
import subprocess
import sys
import time
from datetime import date

import torch

import moopt
from moopt_kernels import calls
from moopt_problems import BitAllocation

ROUNDS, MOST = 9, 1.25
"""Rounds of measuring; the most that evaluating may cost, as a multiple of the plain forward pass."""


def seconds(work):
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def start_up(code):
    """The fastest of three fresh interpreters."""
    return min(seconds(lambda: subprocess.run([sys.executable, *code], check=True, capture_output=True)) for _ in "123")


if __name__ == "__main__":
    problem = BitAllocation("smollm2-135m", tokens=2048)
    problem.setup(moopt.Resources())
    bench = problem._ready.evaluator
    configs = [problem.baselines()["uniform-4"], problem.baselines()["uniform-6"]]
    ids = bench.ids(problem.fidelity)
    for config in configs:  # quantizes, runs the original once, and warms up
        problem.evaluate(config, problem.fidelity)
    evaluated, plain = [], []
    with torch.inference_mode():
        for turn in range(ROUNDS):
            config = configs[turn % 2]
            evaluated.append(seconds(lambda c=config: problem.evaluate(c, problem.fidelity)))
            bench.candidate.use({})
            plain.append(seconds(lambda: bench.candidate.model(input_ids=ids, use_cache=False).logits))
    ratio = statistics.median(e / p for e, p in zip(evaluated, plain, strict=True))
    print(
        f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end=""
    )
    ran = ", ".join(f"{name} ({where}) {times}x" for (name, where), times in calls().items()) or "torch"
    print(f"Python {platform.python_version()}; implementation: {ran}, {bench.candidate.dtype}")
    print(f"{ids.numel()} tokens: plain forward pass {statistics.median(plain):.2f} s, ", end="")
    print(f"candidate {statistics.median(evaluated):.2f} s, ratio {ratio:.3f} (at most {MOST})")
    print(f"import moopt {start_up(['-c', 'import moopt']):.2f} s (under 1), ", end="")
    print(f"moopt --help {start_up(['-m', 'moopt.cli', '--help']):.2f} s (under 1.5)")
    sys.exit(ratio > MOST or any(where == "reference" for _, where in calls()))
