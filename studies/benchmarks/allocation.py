"""The best model in exactly so many bytes, for the same forward tokens: our search against every way to allocate bits.

    python studies/benchmarks/allocation.py                          what problems and methods there are
    python studies/benchmarks/allocation.py digits-mlp --draws 11    run them; again, and it goes on where it stopped
    python studies/benchmarks/allocation.py smollm2 --only 'auto; fisher; evopress, 3 bits' --draws 1
    python studies/benchmarks/allocation.py --show                   run nothing, show what is finished

All that a method does is counted in forward tokens: sensitivities, screens and gradients too (a backward pass counts
two). A draw is of the text and labels that tables are made of, and the seed of the search. What a method chose by the
search's text is measured on held-out text, sequence by sequence; nothing is selected there. All that was measured is
kept in a Parquet file beside this script. Prints tables and what we ask as PASS or FAIL, and draws a picture.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

import moopt
from moopt import pareto
from moopt.algorithms import NSGA2, QNEHVI, RCO, EvoPress, SequentialKnapsack, SurrogateEvolution
from moopt.algorithms.opening import configuration
from moopt.bench import allocations
from moopt.bench.searchers import searcher
from moopt.budgets import Knapsack
from moopt.jobs import perform
from moopt.problem import Fidelity
from moopt_problems import BitAllocation
from moopt_problems.synthetic import DigitsAllocation

KEPT = Path(__file__).parent / "kept" / "allocations.parquet"
AMQ = "amq, 5 times"
"""A search of others, and how often it gets the tokens that the others have."""


@dataclass(frozen=True)
class Setting:
    """A problem, what a run may spend, and the uniform widths whose sizes are the budgets.

    Rivals open with the directional Fisher table where there is one: that by columns is ours, and so no part of them.
    """

    make: Callable[..., moopt.Problem]
    tokens: int
    table: int
    held_out: int
    budgets: tuple[int, ...] = (3, 4)
    ablations: tuple[str, ...] = ()
    tables: tuple[str, ...] = ("fisher", "fisher-columns", "hawq-v2", "one-layer")
    peers: tuple[str, ...] = (AMQ,)

    def problem(self, method, draw):
        """The problem as a method opens it."""
        mine = method in OURS or "fisher" not in self.tables
        return self.make(draw=draw) if mine else self.make(draw=draw, sensitivities="fisher")

    @property
    def early(self):
        """The tokens after which `auto` is to have what peers have after all of theirs."""
        return self.tokens // 5

    def amounts(self, problem):
        """The budgets in the problem's unit of cost, by name."""
        columns = {int(name.removeprefix("uniform-")): config for name, config in problem.baselines().items()}
        return {f"{b} bits": cost(problem, columns[b]) for b in self.budgets}


smollm2 = partial(BitAllocation, "smollm2-135m", tokens=2_048, held_out=0, validation=0, sensitivity_tokens=4_096)
minilm = partial(
    BitAllocation, "minilm-l6", tokens=2_048, context=128, held_out=0, validation=0, sensitivity_tokens=512
)
digits = partial(DigitsAllocation, tokens=2_700, sensitivity_tokens=2_700)
SETTINGS = {
    "digits-mlp": Setting(partial(digits, "mlp"), 394_200, 2_700, 2_223),
    "digits-transformer": Setting(partial(digits, "transformer"), 394_200, 2_700, 2_223),
    "minilm": Setting(minilm, 300_000, 512, 16_384, tables=("one-layer", "output-error")),
    "smollm2": Setting(
        smollm2, 300_000, 12_288, 32_768, tables=("fisher", "fisher-diagonal", "fisher-columns", "hawq-v2"),
        ablations=("qnehvi, no prior mean", "qnehvi, no trust region", "qnehvi, rounding"),
        peers=(AMQ, "optuna-tpe, 2 times", "pymoo-nsga2, 2 times"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A search: what makes its algorithm, given the budget or None for all, and the share of the tokens it gets."""

    make: Callable[..., object]
    alone: bool = False
    share: float = 1.0


def rco(budget, setting, tokens):
    """The paper's 200 steps of 4 candidates, scaled down to what the tokens allow."""
    problem = setting.make()
    each = problem.forward_tokens("gradient", Fidelity(problem.fidelity.tokens // 4))
    steps = int(0.7 * tokens / (2 * each))
    return RCO([budget], steps=max(steps, 10), samples=2, tokens=problem.fidelity.tokens // 4, decisions=5)


METHODS = {
    "auto": Method(lambda budget, setting, tokens: "auto"),
    "auto, one budget": Method(lambda budget, setting, tokens: "auto", alone=True),
    "qnehvi": Method(lambda budget, setting, tokens: QNEHVI()),
    "qnehvi, no prior mean": Method(lambda budget, setting, tokens: QNEHVI(prior=False)),
    "qnehvi, no trust region": Method(lambda budget, setting, tokens: QNEHVI(trust_region=False)),
    "qnehvi, rounding": Method(lambda budget, setting, tokens: QNEHVI(rounding=True)),
    "surrogate-evolution": Method(lambda budget, setting, tokens: SurrogateEvolution()),
    "nsga2": Method(lambda budget, setting, tokens: NSGA2(20)),
    "evopress": Method(lambda budget, setting, tokens: EvoPress([budget]), alone=True),
    "evopress, our opening": Method(lambda budget, setting, tokens: EvoPress([budget]), alone=True),
    "evopress, 10 times": Method(lambda budget, setting, tokens: EvoPress([budget]), True, 10.0),
    "evopress, all budgets": Method(lambda budget, setting, tokens: EvoPress()),
    "sequential-knapsack": Method(
        lambda budget, setting, tokens: SequentialKnapsack(budgets=[budget]), True, 220 / 300
    ),
    "rco": Method(rco, alone=True),
    "rco, a third": Method(rco, True, 1 / 3),
}
RIVAL = "evopress, all budgets"
GRADIENTS = {"auto, one budget", "rco", "sequential-knapsack", "rco, a third"}
OURS = GRADIENTS | {"auto", "evopress, our opening"}
ABLATIONS = {name for setting in SETTINGS.values() for name in setting.ablations}


def cost(problem, config):
    """What a configuration costs, in the problem's unit."""
    levels = [int(problem.space[n].encode(config[n]) - problem.space[n].lower) for n in problem.space.names]
    return Knapsack(np.zeros(problem.costs().shape), problem.costs()).cost(levels)


def units(name, draws, only):
    """What there is to run: problem, method, budget and draw; low draws first."""
    setting = SETTINGS[name]
    problem = setting.make()
    able = "gradient" in moopt.problem.capabilities(problem)
    for draw in range(draws):
        for table in ("uniform", *setting.tables):
            if not only or table in only:
                yield table, None, draw
        yield from ((each, None, draw) for each in setting.peers if not only or each in only)
        for method, how in METHODS.items():
            if (able or method not in GRADIENTS) and method not in ABLATIONS - set(setting.ablations):
                for within in setting.amounts(problem) if how.alone else (None,):
                    if not only or {method, f"{method}, {within}"} & set(only):
                        yield method, within, draw


def run(name, method, budget, draw, folder):
    """One unit: everything that was measured, and the choices on held-out text, as rows."""
    setting = SETTINGS[name]
    problem = setting.problem(method, draw)
    amounts = setting.amounts(problem)
    wanted = amounts if budget is None else {budget: amounts[budget]}
    if method in setting.peers:
        problem.setup(moopt.Resources(threads=1))
        rows, best = peer(problem, setting, method, draw, wanted)
    elif method not in METHODS:
        problem.setup(moopt.Resources(threads=1))
        rows, best = tabled(problem, method, wanted, setting.table)
    else:
        how = METHODS[method]
        tokens = int(how.share * setting.tokens)
        algorithm = how.make(wanted.get(budget), setting, tokens)
        place = folder / f"{name}, {method}, {budget}, {draw}.journal" if name == "smollm2" else None
        alone = [wanted[budget]] if how.alone and algorithm == "auto" else None
        study = moopt.Study(
            method, problem, algorithm, place, seed=draw, resources=moopt.Resources(threads=1), budgets=alone
        )
        study.run(tokens=tokens)
        rows, best = searched(study.history, problem, wanted, tokens)
        if max((row["spent"] for row in rows), default=0) < tokens:
            sys.exit(f"{method}, draw {draw}: stopped before its {tokens} tokens were spent; run it again to go on")
    job = Fidelity(setting.held_out, "held-out")
    spent = max((row["spent"] for row in rows), default=0)
    for within, config in best.items():
        found = judge(name).evaluate(config, job)
        loss = problem.objectives[0].name
        samples = (found.samples or {})[loss]
        rows.append(row(problem, config, "held-out", spent, found.values[loss], within, samples))
    day = datetime.now(UTC).date().isoformat()
    key = {"problem": name, "method": method, "budget": budget or "", "draw": draw, "day": day}
    return [{**key, "order": i, **each} for i, each in enumerate(rows)]


@cache
def judge(name):
    """The problem that held-out text is measured by: the original runs on it once for all units."""
    problem = SETTINGS[name].make()
    problem.setup(moopt.Resources(threads=1))
    return problem


def tabled(problem, method, amounts, tokens):
    """The knapsacks on a table at each budget; for "uniform" the uniform widths."""
    if method == "uniform":
        return [], {within: problem.baselines()[f"uniform-{within.split()[0]}"] for within in amounts}
    spent = problem.forward_tokens("sensitivity", Fidelity(tokens, method))
    knapsack = Knapsack(problem.sensitivities(method, tokens), problem.costs())
    best = {within: configuration(problem, knapsack.at(amount)) for within, amount in amounts.items()}
    return [row(problem, config, "table", spent, np.nan, within) for within, config in best.items()], best


def peer(problem, setting, method, draw, amounts):
    """A search of others with more tokens, which is told nothing but costs and losses; its best within each budget."""
    name, times = method.removesuffix(" times").split(", ")
    count, loss = int(times) * setting.tokens // problem.fidelity.tokens, problem.objectives[0].name
    search, rows, configs = searcher(name, problem, count, draw), [], []
    for spent in range(1, count + 1):
        job = search.ask()
        outcome = perform(problem, job)
        search.tell(job, outcome)
        rows.append(row(problem, job.config, "evaluate", spent * problem.fidelity.tokens, outcome.values[loss]))
        configs.append(job.config)
    best = {}
    for within, amount in amounts.items():
        fitting = [i for i, each in enumerate(rows) if each["cost"] <= amount]
        best[within] = configs[min(fitting, key=lambda i: rows[i]["loss"])]
    return rows, best


def searched(history, problem, amounts, tokens):
    """What a search measured, and its best within each budget by that."""
    rows, spent, loss = [], 0, problem.objectives[0].name
    for event in history.events:
        spent += event.tokens
        if event.outcome is not None and event.job.config and hasattr(event.outcome, "values"):
            value = event.outcome.values.get(loss, np.nan)
            rows.append(row(problem, event.job.config, event.job.kind, spent, value))
    done, best = history.feasible(), {}
    for within, amount in amounts.items():
        fitting = [t for t in done if cost(problem, t.config) <= amount]
        best[within] = min(fitting, key=lambda t: t.values[loss]).config
    return rows, best


def row(problem, config, kind, spent, loss, within="", samples=None):
    choice = [int(problem.space[n].encode(config[n]) - problem.space[n].lower) for n in problem.space.names]
    found = {"kind": kind, "spent": int(spent), "within": within, "cost": cost(problem, config), "loss": float(loss)}
    return {**found, "choice": choice, "samples": None if samples is None else list(map(float, samples))}


def volumes_over_amq(kept, name, draw):
    """The hypervolume of auto's front over that of AMQ's, of log loss and cost, up to the worst of either; or None."""
    fronts = [allocations.points(kept, name, each, draw) for each in ("auto", AMQ)]
    if not all(map(len, fronts)):
        return None
    logs = [np.column_stack([front[:, 0], np.log(front[:, 1])]) for front in fronts]
    ours, theirs = (pareto.hypervolume(each, np.vstack(logs).max(axis=0)) for each in logs)
    return ours / theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", choices=[[], *SETTINGS], metavar="PROBLEM", help=", ".join(SETTINGS))
    everything = [*METHODS, *sorted({each for setting in SETTINGS.values() for each in setting.peers}), "tables"]
    parser.add_argument("--only", default="", help=f"methods, with semicolons between: {'; '.join(everything)}")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--kept", type=Path, default=KEPT, help="the file of what was measured, read and added to")
    parser.add_argument("--out", type=Path, default=Path("runs/allocation"), help="where studies under way are")
    parser.add_argument("--show", action="store_true", help="run nothing; show what is kept")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    only = [each.strip() for each in asked.only.split(";") if each.strip()]
    before = allocations.read(asked.kept)
    for name in asked.problems if not asked.show else ():
        for method, budget, draw in units(name, asked.draws, only):
            if not allocations.has(before, name, method, budget or "", draw):
                allocations.add(asked.kept, pd.DataFrame(run(name, method, budget, draw, asked.out)))
                gc.collect()  # a study refers to itself, and to a model
                print(f"{name}, {method}, {budget or 'all budgets'}, draw {draw}: done", file=sys.stderr)
    kept = allocations.read(asked.kept)
    names = [name for name in asked.problems or SETTINGS if (kept["problem"] == name).any()]
    sys.exit(0 if all([report(kept, name, asked.out) for name in names]) else 1)


def report(kept, name, out):
    """Print a problem's table and what we ask of it, and draw it; whether nothing of what was measured falls short."""
    print(f"\n== {name}\n{allocations.table(kept, name, 'auto').to_string(index=False, float_format='{:.5g}'.format)}")
    fronts = allocations.volumes(kept, name, [SETTINGS[name].early, SETTINGS[name].tokens])
    print(f"\n{fronts.to_string(index=False, float_format='{:.4f}'.format)}\n")
    allocations.picture(kept, name, out / f"{name}.html")
    for within in ("3 bits", "4 bits"):
        if (left := allocations.room(kept, name, "evopress", within)) is not None:
            print(f"{within}: the least loss on the search's text that anything had is {left:.3f} below evopress's")
    good = True
    for text, value, low, bound in asks(kept, name):
        held = value >= bound and low > 0
        good &= held
        print(f"{'PASS' if held else 'FAIL'} {text}: {value:.3f}, interval from {low:.3f} (>= {bound}, above 0)")
    for text, value, bound in (*whole_fronts(kept, name), *ahead(fronts, SETTINGS[name])):
        good &= value >= bound
        print(f"{'PASS' if value >= bound else 'FAIL'} {text}: {value:.3f} (>= {bound})")
    return good


def asks(kept, name):
    """What is asked of held-out losses: by what share one method is to be below another."""
    rivals = [
        ("evopress", "3 bits", 0.05), ("evopress", "4 bits", 0.05), ("hawq-v2", "3 bits", 0.1),
        ("hawq-v2", "4 bits", 0.1), ("fisher", "3 bits", 0.075), ("fisher", "4 bits", 0.02),
    ]  # fmt: skip
    wanted = [(ours, *each) for ours in ("auto", "auto, one budget") for each in rivals]
    wanted.append(("sequential-knapsack", "fisher", "3 bits", 0.075))
    for ours, theirs, within, bound in wanted:
        found = allocations.gain(*(allocations.held_out(kept, name, each, within) for each in (ours, theirs)))
        if found is not None:
            yield f"{within}: {ours} below {theirs}, median of {found.draws} draws", found.median, found.low, bound


def whole_fronts(kept, name):
    """What is asked of losses without an interval, and of whole fronts; by what the search measured."""
    for within in ("3 bits", "4 bits"):
        pair = [allocations.held_out(kept, name, each, within) for each in ("rco, a third", "evopress")]
        if found := allocations.gain(*pair):
            yield f"{within}: rco with a third of the tokens below evopress, median", found.median, 0.0
    fronts = [[allocations.points(kept, name, each, draw) for each in ("auto", RIVAL)] for draw in range(11)]
    shares = [allocations.dominated(ours, theirs) for ours, theirs in fronts if len(ours) and len(theirs)]
    volumes = [volumes_over_amq(kept, name, draw) for draw in range(11)]
    if known := [each for each in volumes if each is not None]:
        yield f"volume of log loss and cost, auto over {AMQ} the tokens, median", float(np.median(known)), 1.0
    if shares:
        yield f"share of the points of {RIVAL} that auto has or beats, median", float(np.median(shares)), 0.9


def ahead(fronts, setting):
    """The volumes of auto's front after a fifth of the tokens, over those of peers that got more than all of them."""
    volumes = fronts.set_index(["method", "tokens"])
    for peer in setting.peers:
        spent = volumes.index[volumes.index.get_level_values("method") == peer].max() if peer in volumes.index else None
        if peer != AMQ and spent and ("auto", setting.early) in volumes.index:
            ratio = (volumes.loc[("auto", setting.early)] / volumes.loc[spent])[["volume", "volume of log loss"]].min()
            yield f"auto after {setting.early} tokens over {peer} the tokens, the smaller volume", ratio, 1.0


if __name__ == "__main__":
    main()
