"""Synthetic knapsacks with a known optimum: RCO, which keeps its budget at every step, beside penalties for the cost.

    python studies/benchmarks/knapsacks.py [--groups 50 200 1000] [--seeds 11]

A group has a size of 1 to 4 units and 6 widths. At b bits it costs size x b and loses about s * 4**-b, with the
sensitivities s, and a deviation of every loss, lognormal. The budget is what 3 bits everywhere cost. The score of an
allocation is its share of the optimum's gain over 3 bits everywhere: 0 for that, 1 for the exact knapsack, below 0 for
what is worse.

Everyone starts from equal odds and takes 200 steps with 4 draws each, told the same of every change. RCO averages that,
which is exact after one draw where losses add up, as here; penalties follow the logits' slopes by Adam. A penalty's
choice is each group's likeliest option: scored 0 where that is over the budget ("as it is"), and after a greedy repair
within it, by the odds that the search found ("repaired"). A penalty gets its best multiplier in the mean of all seeds,
and like RCO the best of the five choices of a search. The last line of a size needs no search: the same repair of 8
bits everywhere by the losses themselves, which only an additive problem has. Prints what we ask as PASS or FAIL; exits
with an error if one fails.
"""

import argparse
import os
import platform
import sys
from datetime import date

import numpy as np

import moopt
from moopt.algorithms import RCO
from moopt.budgets import Knapsack
from moopt.jobs import Job, perform
from moopt.problem import Fidelity

BITS = np.array([2, 3, 4, 5, 6, 8])
UNIFORM = 1
MULTIPLIERS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the penalty on the relative excess, with losses in shares of that of 3 bits everywhere."""
DRAWN = 50
"""Groups up to which RCO draws its candidates by dynamic programming; an additive loss has the same slopes anywhere."""
STEPS, SAMPLES = 200, 4
SCORE, DEVIATION = 0.99, 1e-6
FIRST_SEED = 10


class Groups(moopt.Problem):
    """An additive loss of independent groups, told by its slopes alone."""

    objectives = (moopt.Objective("loss"), moopt.Objective("cost", known=True))

    def __init__(self, groups, seed):
        rng = np.random.default_rng([seed, groups])
        losses = rng.lognormal(0, 1.5, groups)[:, None] * 4.0**-BITS * rng.lognormal(0, 0.3, (groups, len(BITS)))
        self.table = -np.sort(-losses, axis=1)
        self.table /= self.table[:, UNIFORM].sum()
        self._costs = rng.integers(1, 5, groups)[:, None] * BITS
        self.space = moopt.Space({f"g{i}": moopt.Ordinal(*BITS.tolist()) for i in range(groups)})
        self.budget = int(self._costs[:, UNIFORM].sum())
        self.optimum = self.loss(Knapsack(self.table, self._costs).at(self.budget))

    def costs(self):
        return self._costs

    def known(self, config):
        return {"cost": float(self.picked(self._costs, self.space.encode(config).astype(int)))}

    def evaluate(self, config, fidelity):
        return moopt.Evaluation({"loss": self.loss(self.space.encode(config).astype(int))})

    def gradient(self, config, fidelity):
        slopes = self.table - self.table[np.arange(len(self.table)), self.space.encode(config).astype(int)][:, None]
        return {}, slopes, np.zeros_like(slopes)

    def loss(self, choice):
        return float(self.picked(self.table, choice))

    def picked(self, table, choice):
        return table[np.arange(len(table)), choice].sum()

    def score(self, choice):
        """The share of the optimum's gain over 3 bits everywhere, which lose 1; 0 over the budget."""
        return (1 - self.loss(choice)) / (1 - self.optimum) if self.picked(self._costs, choice) <= self.budget else 0.0


class Watched(RCO):
    """RCO that keeps the largest relative deviation of its relaxation's expected cost from the budget.

    With many groups it linearises at one candidate, undrawn: exact where the loss is additive, as its slopes are the
    same everywhere.
    """

    deviation = 0.0

    def _linearising(self, near, place, sample):
        expected = near.relaxation(self._temperature(near.steps)).cost
        self.deviation = max(self.deviation, abs(expected - near.budget) / near.budget)
        if len(self.problem.space) <= DRAWN:
            return super()._linearising(near, place, sample)
        note = {"budget": near.budget, "sample": sample}
        return Job(-1, dict.fromkeys(self.problem.space.names, int(BITS[0])), "gradient", Fidelity(0), note=note)


def rco(problem, seed):
    """The best score of what RCO decides, and the largest relative deviation of the expected cost from the budget."""
    algorithm = Watched([problem.budget], steps=STEPS, samples=SAMPLES)
    algorithm.start(problem, seed)
    best, steps = -np.inf, 0
    while steps < algorithm.steps or not all(map(algorithm.seen, algorithm._decided)):
        jobs = algorithm.ask(algorithm.samples)
        algorithm.issued(jobs)
        for job in jobs:
            algorithm.tell([(job, perform(problem, job))])
            if job.kind == "evaluate":
                best = max(best, problem.score(problem.space.encode(job.config).astype(int)))
        steps += jobs[0].kind == "gradient"
    return best, algorithm.deviation


def penalised(problem, seed, multiplier, squared):
    """Scores as they are and repaired of the same search with a penalty in place of the budget: the paper's Adam."""
    costs = problem.costs() / problem.budget
    logits, first, second = (np.zeros(costs.shape) for _ in range(3))
    rng, scores = np.random.default_rng(seed), []
    for step in range(STEPS):
        temperature = 0.01 ** (step / (STEPS - 1))
        gradient = np.zeros(costs.shape)
        p = softmax(logits)
        excess = (p * costs).sum() - 1
        pull = 2 * excess if squared else float(excess > 0)
        gradient += multiplier * pull * p * (costs - (p * costs).sum(1, keepdims=True))
        for _ in range(SAMPLES):
            soft = softmax((logits + rng.gumbel(size=costs.shape)) / temperature)
            slopes = problem.table - (soft * problem.table).sum(1, keepdims=True)
            gradient += soft * slopes / temperature / SAMPLES
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        logits = logits - 0.1 * moved[0] / (np.sqrt(moved[1]) + 1e-8)
        if (step + 1) % (STEPS // RCO().decisions) == 0:
            choice = logits.argmax(1)
            scores.append((problem.score(choice), problem.score(repaired(problem, -logits, choice))))
    return np.max(scores, axis=0)


def repaired(problem, losses, choice):
    """A choice within the budget: lowered where, by a table of losses, that loses least for what it saves."""
    choice, rows, costs = choice.copy(), np.arange(len(choice)), problem.costs()
    while (over := problem.picked(costs, choice) - problem.budget) > 0:
        saved = costs[rows, choice][:, None] - costs
        lost = losses - losses[rows, choice][:, None]
        price = np.where(saved > 0, lost / np.clip(saved, 1, over), np.inf)
        row, option = np.unravel_index(price.argmin(), price.shape)
        choice[row] = option
    return choice


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def compared(groups, seeds):
    """Prints the scores of everyone on knapsacks of so many groups; returns what is asked of them."""
    problems = [Groups(groups, FIRST_SEED + seed) for seed in range(seeds)]
    found, deviations = np.transpose([rco(problem, seed) for seed, problem in enumerate(problems)])
    print(f"{groups:>6}  {'RCO':<34} {shown(found)}  cost off by {deviations.max():.1e} at most", flush=True)
    best = -np.inf
    for squared, form in ((True, "x (C - B)^2"), (False, "x max(0, C - B)")):
        runs = np.array(
            [[penalised(p, seed, m, squared) for seed, p in enumerate(problems)] for m in MULTIPLIERS]
        )  # multipliers x seeds x (as it is, repaired)
        for column, name in enumerate(("as it is", "repaired")):
            means = runs[:, :, column].mean(1)
            at = int(means.argmax())
            print(f"{'':>6}  {f'{MULTIPLIERS[at]:g} {form}, {name}':<34} {shown(runs[at, :, column])}", flush=True)
            best = max(best, float(means[at]))
    dearest = np.full(groups, len(BITS) - 1)
    greedy = np.array([problem.score(repaired(problem, problem.table, dearest)) for problem in problems])
    print(f"{'':>6}  {'no search: greedy by the losses':<34} {shown(greedy)}", flush=True)
    return found.mean(), best, deviations.max()


def shown(scores):
    return f"{scores.mean():7.4f} {scores.min():8.4f} {scores.max():8.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--seeds", type=int, default=11)
    asked = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          f"{asked.seeds} seeds, share of the optimum's gain over 3 bits everywhere")  # fmt: skip
    print(f"{'groups':>6}  {'':<34} {'mean':>7} {'least':>8} {'most':>8}")
    kept = True
    for groups in asked.groups:
        mine, theirs, deviation = compared(groups, asked.seeds)
        for text, good, aim in (
            (f"{groups} groups: RCO's share {mine:.4f}", mine >= SCORE, f">= {SCORE}"),
            (f"{groups} groups: RCO over the best penalty {mine - theirs:+.4f}", mine >= theirs, ">= 0"),
            (f"{groups} groups: relative |C - B| {deviation:.1e}", deviation <= DEVIATION, f"<= {DEVIATION}"),
        ):
            kept &= good
            print(f"{'PASS' if good else 'FAIL'} {text} ({aim})", flush=True)
    if not kept:
        sys.exit("A limit is broken.")


if __name__ == "__main__":
    main()
