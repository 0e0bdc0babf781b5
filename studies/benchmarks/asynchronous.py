"""What asynchronous search costs and brings: NSGA-II with eight workers against one that waits for every result.

    python studies/benchmarks/asynchronous.py

Time is simulated: evaluations last as long as a lognormal draw says, the slowest several times the median, and a worker
that is free asks at once. Compared at equal evaluations: one worker, which knows every result before it asks (the best
an algorithm can know), eight workers that never wait, and eight that wait for each other after every generation. Exits
with an error if eight workers lose more than 3% of the hypervolume of one, or if one of them was ever idle.
"""

import heapq
import platform
import sys
from datetime import date

import numpy as np

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2
from moopt.jobs import perform
from moopt_problems.synthetic import BitToy, PymooFunction

WORKERS, POPULATION, SEEDS, SPREAD = 8, 50, 11, 0.6
LEAST_RATIO = 0.97
PROBLEMS = [
    ("ZDT1, 30 variables", PymooFunction("zdt1", 30), [1.1, 1.1], 6000),
    ("DTLZ2, 12 variables, 3 objectives", PymooFunction("dtlz2", 12, 3), [1.1] * 3, 3000),
    ("bit toy, 60 decisions, interacting", BitToy(60, interaction=3.0), [0.1, 2400.0], 1000),
]


class Search:
    """An algorithm, and workers in simulated time: who is busy until when, and for how long all were."""

    def __init__(self, problem, seed, workers):
        self.problem, self.workers = problem, workers
        self.algorithm = NSGA2(POPULATION)
        self.algorithm.start(problem, seed)
        self.durations = np.random.default_rng([seed, 1])
        self.now, self.busy, self.issued, self.asked_in_vain = 0.0, 0.0, 0, 0
        self.running = []

    def begin(self, trials):
        """Give every free worker a job, up to so many trials in all."""
        while self.issued < trials and len(self.running) < self.workers:
            jobs = self.algorithm.ask(min(self.workers - len(self.running), trials - self.issued))
            if not jobs:
                self.asked_in_vain += 1
                return
            self.algorithm.issued(jobs)
            for job in jobs:
                duration = self.durations.lognormal(0.0, SPREAD)
                heapq.heappush(self.running, (self.now + duration, job.trial, job))
                self.busy += duration
            self.issued += len(jobs)

    def end(self):
        """Wait for the next result."""
        self.now, _, job = heapq.heappop(self.running)
        self.algorithm.tell([(job, perform(self.problem, job))])

    def report(self, reference):
        values = np.array(self.algorithm.archive.values)
        return pareto.hypervolume(values, reference), self.busy / (self.workers * self.now), self.asked_in_vain


def free(problem, seed, trials, reference, workers):
    """Workers that ask whenever they are free."""
    search = Search(problem, seed, workers)
    while search.issued < trials:
        search.begin(trials)
        search.end()
    while search.running:
        search.end()
    return search.report(reference)


def in_step(problem, seed, trials, reference):
    """Workers that wait for the whole generation."""
    search = Search(problem, seed, WORKERS)
    for generation in range(0, trials, POPULATION):
        while search.issued < min(generation + POPULATION, trials):
            search.begin(min(generation + POPULATION, trials))
            search.end()
        while search.running:
            search.end()
    return search.report(reference)


print(f"{date.today()}, Python {platform.python_version()}, moopt {moopt.__version__}")
print(f"NSGA-II, population {POPULATION}, {SEEDS} seeds; hypervolume: median, and over that of one worker")
print(f"{'':36}{'one worker':>12}{'eight':>10}{'ratio':>8}{'busy':>7}{'in step':>10}{'ratio':>8}{'busy':>7}")
missed = []
for name, problem, reference, trials in PROBLEMS:
    found = [
        (
            free(problem, seed, trials, reference, 1),
            free(problem, seed, trials, reference, WORKERS),
            in_step(problem, seed, trials, reference),
        )
        for seed in range(SEEDS)
    ]
    one, eight, step = np.median(found, axis=0)
    print(
        f"{name:36}{one[0]:12.5g}{eight[0]:10.5g}{eight[0] / one[0]:8.3f}{eight[1]:7.1%}"
        f"{step[0]:10.5g}{step[0] / one[0]:8.3f}{step[1]:7.1%}",
        flush=True,
    )
    if eight[0] < LEAST_RATIO * one[0]:
        missed.append(f"{name}: eight workers reach {eight[0] / one[0]:.3f} of one, less than {LEAST_RATIO}")
    if any(asked_in_vain for _, (_, _, asked_in_vain), _ in found):
        missed.append(f"{name}: a free worker got nothing to do")
sys.exit("Not kept: " + "; ".join(missed) if missed else 0)
