"""What the engine costs and reaches: our NSGA-II against pymoo's, and the time a trial takes beyond its evaluation.

    python studies/benchmarks/engine.py            all of it, about 10 minutes
    python studies/benchmarks/engine.py --quick    one function, three seeds

Exits with an error if a limit is not kept, or if what ran is not what a user gets.
"""

import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from optuna.storages import InMemoryStorage, JournalStorage
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
from pymoo.core.callback import Callback
from pymoo.optimize import minimize

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2
from moopt_problems.synthetic import BitToy, PymooFunction

QUICK = "--quick" in sys.argv
FUNCTIONS = [("zdt1", 30, 2), ("zdt2", 30, 2), ("zdt3", 30, 2), ("dtlz2", 12, 3)]
POPULATION, EVALUATIONS, SEEDS = 100, 10_000, 10
DECISIONS, TRIALS = 120, 2_000
LEAST_RATIO, MOST_IN_MEMORY, MOST_JOURNAL = 0.99, 2.0, 5.0
"""The hypervolume over pymoo's; milliseconds a trial beyond pymoo's in memory; milliseconds a trial with a journal."""
MOST_SUGGESTION = 0.2
"""Milliseconds a candidate that the algorithm itself may take."""


class Evaluated(Callback):
    """Everything pymoo evaluated, as our history has everything we did."""

    def __init__(self):
        super().__init__()
        self.values = []

    def notify(self, algorithm):
        self.values.append((algorithm.pop if algorithm.off is None else algorithm.off).get("F"))


def pymoos(problem, seed):
    """The hypervolume and the seconds of pymoo's own NSGA-II."""
    evaluated, began = Evaluated(), time.perf_counter()
    minimize(problem.pymoo, PymooNSGA2(POPULATION), ("n_eval", EVALUATIONS), seed=seed, callback=evaluated)
    seconds = time.perf_counter() - began
    values = np.concatenate(evaluated.values)
    expect(len(values) == EVALUATIONS, f"pymoo evaluated {len(values)}, not {EVALUATIONS}")
    return pareto.hypervolume(values, [o.reference for o in problem.objectives]), seconds


def ours(problem, seed):
    """The hypervolume and the seconds of ours, in memory."""
    study, began = moopt.Study("benchmark", problem, NSGA2(POPULATION), seed=seed), time.perf_counter()
    study.run(EVALUATIONS)
    seconds = time.perf_counter() - began
    check(study, EVALUATIONS, InMemoryStorage)
    return study.hypervolume(), seconds


class Levels(moopt.Problem):
    """Ordinal decisions that nothing depends on: what is timed is the algorithm alone."""

    objectives = (moopt.Objective("f0"), moopt.Objective("f1"))

    def __init__(self, decisions):
        self.space = moopt.Space({f"layer{i}": moopt.Ordinal(2, 3, 4, 6, 8) for i in range(decisions)})

    def evaluate(self, config, fidelity):
        raise NotImplementedError


def suggestion(decisions, population, trials=3000):
    """Seconds of this process that NSGA-II takes for a candidate: asked one by one, issued and told."""
    algorithm, values = NSGA2(population), np.random.default_rng(0).random((trials, 2)).tolist()
    told = [moopt.Evaluation({"f0": f0, "f1": f1}) for f0, f1 in values]
    began = time.process_time()
    algorithm.start(Levels(decisions), 0)
    for evaluation in told:
        jobs = algorithm.ask(1)
        algorithm.issued(jobs)
        algorithm.tell([(jobs[0], evaluation)])
    return (time.process_time() - began) / trials


def journalled(trials):
    """Seconds a trial with the default storage: by the clock, and of this process."""
    with tempfile.TemporaryDirectory() as folder:
        problem = BitToy(DECISIONS)
        study = moopt.Study("benchmark", problem, NSGA2(POPULATION), storage=Path(folder) / "moopt.journal")
        began, worked = time.perf_counter(), time.process_time()
        study.run(trials)
        seconds, processor_seconds = time.perf_counter() - began, time.process_time() - worked
        check(study, trials, JournalStorage)
        expect(len(moopt.load_history(Path(folder) / "moopt.journal").front()) > 1, "the journal has no front")
    return seconds / trials, processor_seconds / trials


def check(study, trials, storage):
    expect(type(study.algorithm).__module__ == "moopt.algorithms.nsga2", f"{study.algorithm} ran")
    expect(isinstance(study.storage.optuna, storage), f"{type(study.storage.optuna).__name__} stored")
    complete = sum(trial.state == "complete" for trial in study.history.trials)
    expect(complete == trials, f"{complete} trials are complete, not {trials}")


def expect(truth, otherwise):
    if not truth:
        sys.exit(f"This is no measurement: {otherwise}.")


def processor():
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(': ')[1]}, {len(names)} cores" if names else platform.processor()


print(f"{date.today()}, {processor()}, Python {platform.python_version()}")
print("moopt", moopt.__version__, *(f"{name} {version(name)}" for name in ("pymoo", "optuna", "moocore", "numpy")))
print(f"\nNSGA-II, population {POPULATION}, {EVALUATIONS} evaluations; all that was evaluated, up to 1.1 an objective")
print(f"{'':18}{'hypervolume (median)':>22}{'':14}{'ms an evaluation':>18}")
print(f"{'function':14}{'seeds':>5}{'pymoo':>10}{'moopt':>10}{'ratio':>8}{'pymoo':>12}{'moopt':>10}{'beyond':>10}")
missed = []
for function, variables, objectives in FUNCTIONS[-1:] if QUICK else FUNCTIONS:
    problem = PymooFunction(function, variables, objectives)
    seeds = range(3 if QUICK else SEEDS)
    theirs, mine = (np.array([run(problem, seed) for seed in seeds]) for run in (pymoos, ours))
    ratio = float(np.median(mine[:, 0]) / np.median(theirs[:, 0]))
    their_time, my_time = (1000 * float(np.median(found[:, 1])) / EVALUATIONS for found in (theirs, mine))
    print(
        f"{function + f' d={variables} m={objectives}':14}{len(seeds):5}{np.median(theirs[:, 0]):10.4f}"
        f"{np.median(mine[:, 0]):10.4f}{ratio:8.4f}{their_time:12.3f}{my_time:10.3f}{my_time - their_time:10.3f}"
    )
    if ratio < LEAST_RATIO:
        missed.append(f"{function}: the hypervolume is {ratio:.4f} of pymoo's, less than {LEAST_RATIO}")
    if my_time - their_time >= MOST_IN_MEMORY:
        missed.append(f"{function}: {my_time - their_time:.2f} ms beyond pymoo's, {MOST_IN_MEMORY} or more")

print("\nNSGA-II itself, ms a candidate, the best of three runs:")
for decisions in (30, DECISIONS):
    for population in (50, 100):
        asked = 1000 * min(suggestion(decisions, population) for _ in range(3))
        print(f"{decisions:5} ordinal decisions, population {population:3}: {asked:.3f}")
        if asked > MOST_SUGGESTION:
            missed.append(f"{decisions} decisions: {asked:.2f} ms a candidate, more than {MOST_SUGGESTION}")

trials = 500 if QUICK else TRIALS
stored, worked = (1000 * seconds for seconds in journalled(trials))
print(f"\nDefault journal storage, NSGA-II, {DECISIONS} decisions, {trials} trials: {stored:.2f} ms a trial,")
print(f"of which this process worked {worked:.2f}; the rest is the disk, and other programs on this machine")
if stored >= MOST_JOURNAL:
    missed.append(f"the journal: {stored:.2f} ms a trial, {MOST_JOURNAL} or more")
sys.exit("Not kept: " + "; ".join(missed) if missed else 0)
