"""What several workers bring and cost: wall time, and memory each.

    python studies/benchmarks/workers.py

Three parts. A CPU-bound study with one and with two workers, one thread each, in turn. A problem that sleeps a second
an evaluation with sixteen workers, timed from the moment they are ready. And what each worker on smollm2-135m adds in
memory (proportional set size) beyond a bare process that imported torch and transformers. Exits with an error if a
limit is broken.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

import moopt
from moopt.algorithms import Random
from moopt.executors.processes import ProcessExecutor
from moopt.jobs import Job
from moopt_problems import BitAllocation

MOST_OF_ONE, LEAST_SPEEDUP, MOST_OF_MODEL = 0.58, 15.0, 0.10
"""Wall time of two workers over that of one; speed of sixteen; the share of model and variants a worker may add."""
SPACE = moopt.Space({"n": moopt.Integer(0, 10**6)})
RESULTS = []


class Busy(moopt.Problem):
    """A third of a second of arithmetic on one core."""

    space, objectives = SPACE, (moopt.Objective("loss"),)

    def evaluate(self, config, fidelity):
        began, rng, total = time.process_time(), np.random.default_rng(config["n"]), 0.0
        while time.process_time() - began < 0.3:
            total += float(np.sort(rng.random(10_000))[5_000])
        return moopt.Evaluation({"loss": total})


class Sleepy(moopt.Problem):
    """A second of sleep."""

    space, objectives = SPACE, (moopt.Objective("loss"),)

    def evaluate(self, config, fidelity):
        time.sleep(1)
        return moopt.Evaluation({"loss": float(config["n"])})


def check(what, value, limit, holds):
    print(f"{what}: {value:.3f} (limit {limit})")
    RESULTS.append(holds)


def ready(executor, problem):
    """Wait until every worker has set the problem up."""
    futures = [executor.submit(Job(i, {"n": i})) for i in range(executor.capacity)]
    while not all(worker.ready for worker in executor.workers()):
        time.sleep(0.05)
    for future in futures:
        future.result()


def throughput(problem, workers, jobs):
    """Wall seconds of so many evaluations, workers started before."""
    executor = ProcessExecutor(problem, moopt.Resources(threads=1), workers)
    ready(executor, problem)
    began = time.perf_counter()
    futures = [executor.submit(Job(i, {"n": i})) for i in range(jobs)]
    for future in futures:
        future.result()
    seconds = time.perf_counter() - began
    executor.close()
    return seconds


def studied(workers, trials):
    """Wall seconds of a whole study, from the first trial's end, when the workers are ready, to the last's."""
    ends = []
    study = moopt.Study("busy", Busy(), Random(), resources=moopt.Resources(threads=1))
    study.run(trials + 2 * workers, workers, "processes", watch=lambda history, event: ends.append(time.perf_counter()))
    return ends[-1] - ends[2 * workers - 1]


def pss(pid):
    """Proportional set size in bytes: shared pages count in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def bare():
    """What processes that only imported torch and transformers take, two side by side."""
    code = "import torch, transformers; from transformers import AutoModelForCausalLM; print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in "12"]
    for process in processes:
        process.stdout.readline()
    found = [pss(process.pid) for process in processes]
    for process in processes:
        process.kill()
        process.communicate()
    return sum(found) / len(found)


def memory(workers):
    """PSS of all workers on smollm2-135m together, after each has run every width: at rest."""
    problem = BitAllocation("smollm2-135m", tokens=1024)
    executor = ProcessExecutor(problem, moopt.Resources(), workers)
    baselines = list(problem.baselines().values())
    for config in baselines:
        futures = [executor.submit(Job(i, config, fidelity=problem.fidelity)) for i in range(workers)]
        for future in futures:
            future.result()
    pids = [int(worker.place.rsplit(" ", 1)[1]) for worker in executor.workers()]
    total = sum(pss(pid) for pid in pids)
    executor.close()
    weights = sum(w.count for w in problem.inventory.weights)
    model = 2 * (weights + sum(int(np.prod(shape)) for shape in problem.inventory.rest.values()))
    variants = sum(2 * w.count * len(d.options) for d in problem.decided.values() for w in d.weights)
    return total, model + variants


if __name__ == "__main__":
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    one, two = zip(*[(studied(1, 40), studied(2, 40)) for _ in range(3)], strict=True)
    ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
    print(f"CPU-bound, 40 trials: one worker {statistics.median(one):.2f} s, two {statistics.median(two):.2f} s")
    check("two workers over one, wall time", ratio, MOST_OF_ONE, ratio <= MOST_OF_ONE)
    seconds = throughput(Sleepy(), 16, 320)
    check("sixteen workers asleep, speed-up", 320 / seconds, LEAST_SPEEDUP, 320 / seconds >= LEAST_SPEEDUP)
    alone, (first, _), (both, whole) = bare(), memory(1), memory(2)
    added = both - first
    print(f"PSS: bare process {alone / 2**20:.0f} MiB, one worker {first / 2**20:.0f}, two {both / 2**20:.0f}")
    share = (added - alone) / whole
    check(
        f"each added worker beyond a bare process, over model and variants ({whole / 2**20:.0f} MiB)",
        share, MOST_OF_MODEL, share <= MOST_OF_MODEL,
    )  # fmt: skip
    sys.exit(0 if all(RESULTS) else "A limit is broken.")
