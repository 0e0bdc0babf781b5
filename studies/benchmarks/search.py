"""Fewer evaluations than anyone? Our algorithms against pymoo's, Optuna's and botorch's, suite by suite.

    python studies/benchmarks/search.py                              what suites there are
    python studies/benchmarks/search.py continuous toys --workers 2  run them; again, and it goes on where it stopped
    python studies/benchmarks/search.py toys --only optuna-tpe,nsga2 --seeds 3

Prints a table of every suite, and what we ask of ourselves as PASS or FAIL; exits with an error if something fails.
Everyone is told the same: the problem's known objectives are free, its baselines (where it has some) are evaluated
first, and every evaluation counts. The toys tell nothing: neither sensitivities nor uniform baselines; one of them
sells a table of sensitivities for one evaluation a layer, to see whether it is worth that. Finished searches are kept
in a file beside this script: what is there is not run again.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from moopt import algorithms
from moopt.bench import kept, plots, runner, scores, table
from moopt.bench.races import Race
from moopt_problems.synthetic import BitToy, DigitsBits, Noisy, PymooFunction

OURS = [name for name in ("qnehvi", "chebyshev", "nsga2", "random") if name in algorithms.NAMES]
SIMPLE = [name for name in OURS if name != "qnehvi"]
GAUSSIAN = ["botorch-qlognehvi", "optuna-gp"]
QUICK = ["optuna-tpe", "optuna-nsga2", "pymoo-nsga2", "pymoo-nsga3"]
PEERS = [*GAUSSIAN, *QUICK]
NSGA2 = "nsga2@population_size=100"
CLASSICS = ("zdt1", "zdt2", "zdt3", "dtlz2")

toy = partial(BitToy, scale="log", sensitivities=False, uniform=False)
dtlz2 = partial(PymooFunction, "dtlz2")


def noisy(make, given):
    return Noisy(make(), share=0.1, given=given)


SUITES = {
    "continuous": [
        Race("dtlz2 d=6", partial(dtlz2, 6, 2), 60, [*OURS, *PEERS]),
        Race("dtlz2 d=10", partial(dtlz2, 10, 2), 100, [*OURS, *PEERS]),
    ],
    "toys": [
        Race("toy 20", partial(toy, 20), 140, [*OURS, *QUICK]),
        Race("toy 20, 60 evaluations", partial(toy, 20), 60, GAUSSIAN),
        Race("toy 20, interaction x3", partial(toy, 20, interaction=3.0), 140, [*OURS, *QUICK]),
        Race("toy 20, interaction x3, 60 evaluations", partial(toy, 20, interaction=3.0), 60, GAUSSIAN),
        Race("toy 100", partial(toy, 100), 300, [*OURS, *QUICK]),
        Race("toy 100, one probe a layer", partial(toy, 100, sensitivities="counted"), 300, OURS),
    ],
    "digits": [
        Race("digits transformer", partial(DigitsBits, "transformer"), 300, [*OURS, *PEERS]),
        Race("digits transformer, long", partial(DigitsBits, "transformer"), 1000, [*SIMPLE, *QUICK]),
    ],
    "noise": [
        Race("noisy dtlz2 d=6", partial(noisy, partial(dtlz2, 6, 2), True), 100, [*OURS, "optuna-tpe"]),
        Race("noisy dtlz2 d=6, blind", partial(noisy, partial(dtlz2, 6, 2), False), 100, OURS),
        Race("noisy toy 20", partial(noisy, partial(toy, 20), True), 140, [*OURS, "optuna-tpe"]),
        Race("noisy toy 20, blind", partial(noisy, partial(toy, 20), False), 140, OURS),
    ],
    "nsga2": [
        race
        for name in CLASSICS
        for race in (
            Race(name, partial(PymooFunction, name), 10_000, [NSGA2, "pymoo-nsga2"]),
            Race(f"{name}, 8 workers", partial(PymooFunction, name), 10_000, [NSGA2], pending=8),
        )
    ],
}


class Results:
    """Medians over the seeds that are finished; NaN where there are none."""

    def __init__(self, races, units):
        self.units = units
        self.races = {race.name: race for race in races}
        self.targets = {name: scores.target(race, units) for name, race in self.races.items() if self.of(name)}

    def of(self, race, algorithm=None):
        return [u for u in self.units if u.race == race and algorithm in (None, u.algorithm)]

    def share(self, race, algorithm, evaluations=None, seeds=None):
        spent = evaluations or self.races[race].evaluations
        units = [unit for unit in self.of(race, algorithm) if seeds is None or unit.seed in seeds]
        found = [self.targets[race].share(unit.front(spent)) for unit in units]
        return np.median(found) if found else np.nan

    def ahead(self, race, ours, early, peers):
        """Our median share, early, over each peer's at the end, over the seeds that the peer has."""
        seeds = {peer: {unit.seed for unit in self.of(race, peer)} for peer in peers}
        return {
            f"{peer}, {len(own)} seed{'s' * (len(own) > 1)}": self.share(race, ours, early, own)
            / self.share(race, peer)
            for peer, own in seeds.items()
            if own
        }

    def best(self, race, names, evaluations=None):
        found = [self.share(race, name, evaluations) for name in names]
        return np.nanmax(found) if not np.isnan(found).all() else np.nan

    def seconds(self, race, algorithm):
        found = [unit.seconds / len(unit.values) for unit in self.of(race, algorithm)]
        return np.median(found) if found else np.nan


def continuous(results):
    one, ten = "dtlz2 d=6", "dtlz2 d=10"
    mine, theirs = results.share(one, "qnehvi"), results.share(one, "botorch-qlognehvi")
    yield f"{one}, 60: qnehvi over botorch's loop", mine / theirs, ">=", 0.98
    ours, loop = results.seconds(one, "qnehvi"), results.seconds(one, "botorch-qlognehvi")
    yield f"{one}, 60: its seconds a suggestion over botorch's", ours / loop, "<=", 1.0
    yield f"{one}, 60: qnehvi over Optuna's GP", mine / results.share(one, "optuna-gp"), ">=", 1.1
    yield f"{ten}, 100: qnehvi clearly above 0", results.share(ten, "qnehvi"), ">=", 0.05
    # both peers were expected to stay at 0; they do not
    ratio = results.share(ten, "qnehvi") / results.best(ten, GAUSSIAN)
    yield f"{ten}, 100: qnehvi over the better of both GPs", ratio, ">=", 0.98


def toys(results):
    yield "toy 20, 60: qnehvi", results.share("toy 20", "qnehvi", 60), ">=", 0.98
    yield "toy 20, 140: qnehvi", results.share("toy 20", "qnehvi"), ">=", 0.99
    yield "toy 100, 141: qnehvi", results.share("toy 100", "qnehvi", 141), ">=", 0.975
    yield "toy 100, 300: qnehvi", results.share("toy 100", "qnehvi"), ">=", 0.985
    strong = "toy 20, interaction x3"
    early = max(results.best(strong, QUICK, 60), results.best(f"{strong}, 60 evaluations", GAUSSIAN))
    for spent, theirs in ((60, early), (140, results.best(strong, QUICK))):
        ratio = results.share(strong, "qnehvi", spent) / theirs
        yield f"{strong}, {spent}: qnehvi over the best peer", ratio, ">=", 1.3


def digits(results):
    race, long = "digits transformer", "digits transformer, long"
    for peer, ratio in results.ahead(race, "qnehvi", 100, PEERS).items():
        yield f"{race}: qnehvi at 100 over {peer}, at 300", ratio, ">=", 1.0
    for name in ("nsga2", "chebyshev"):
        ratio = results.share(long, name) / results.best(long, QUICK)
        yield f"{long}, 1000: {name} over the best peer", ratio, ">=", 1.0


def noise(results):
    for race in ("noisy dtlz2 d=6", "noisy toy 20"):
        mine = results.share(race, "qnehvi")
        blind, tpe = results.share(f"{race}, blind", "qnehvi"), results.share(race, "optuna-tpe")
        yield f"{race}: qnehvi that is told variances over the blind one", mine / blind, ">", 1.0
        yield f"{race}: and over TPE", mine / tpe, ">", 1.0


def nsga2(results):
    for name in CLASSICS:
        plain, parallel = results.share(name, NSGA2), f"{name}, 8 workers"
        yield f"{name}, 10,000: nsga2 over pymoo's", plain / results.share(name, "pymoo-nsga2"), ">=", 0.99
        yield f"{parallel}: over one worker", results.share(parallel, NSGA2) / plain, ">=", 0.97
        yield f"{parallel}: times one idled", max((u.idle for u in results.of(parallel)), default=np.nan), "<=", 0


CHECKS = {"continuous": continuous, "toys": toys, "digits": digits, "noise": noise, "nsga2": nsga2}
KEPT = Path(__file__).parent / "kept" / "search.parquet"
LARGEST_KEPT = 2_000
"""Evaluations of the longest searches that are kept; longer ones are run again in a minute, and take megabytes."""
HOLDS = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater}


def races(suite, only, seeds):
    """The races of a suite, with fewer algorithms or seeds if asked for."""
    for race in SUITES[suite]:
        names = [name for name in race.algorithms if not only or name in only]
        if names:
            yield Race(race.name, race.make, race.evaluations, names, range(seeds), race.pending)


def judged(suite, chosen, units):
    """Print what a suite asks; whether nothing of what was measured falls short."""
    good = True
    for text, value, sign, bound in CHECKS[suite](Results(chosen, units)) if units else ():
        held = bool(HOLDS[sign](value, bound))
        verdict = "not measured" if np.isnan(value) else "PASS" if held else "FAIL"
        good = good and verdict != "FAIL"
        print(f"{verdict:12} {text}: {value:.4f} ({sign} {bound})")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--out", type=Path, default=Path("runs/search"), help="where units, tables and plots go")
    parser.add_argument("--kept", type=Path, default=KEPT, help="a file of finished searches, read and added to")
    parser.add_argument("--workers", type=int, default=1, help="searches at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument("--only", default="", help="algorithms, with commas between")
    parser.add_argument("--against", default="optuna-tpe", help="what the others are compared with")
    parser.add_argument("--show", action="store_true", help="run nothing; show what is finished")
    asked = parser.parse_args()
    only = [name for name in asked.only.split(",") if name]
    good = True
    kept.restore(asked.kept, asked.out)
    for suite in asked.suites:
        chosen = list(races(suite, only, asked.seeds))
        if not asked.show:
            runner.run(chosen, asked.out, asked.workers, told)
        everyone = list(races(suite, [], asked.seeds))
        units = runner.finished(everyone, asked.out)
        kept.add(asked.kept, (unit for unit in units if len(unit.values) <= LARGEST_KEPT))
        against = asked.against if any(unit.algorithm == asked.against for unit in units) else None
        print(f"\n== {suite}\n{table.text(table.summary(table.units_frame(everyone, units), against))}")
        plots.write(everyone, units, asked.out / f"{suite}.html")
        good = judged(suite, everyone, units) and good
    if not asked.suites:
        for suite, listed in SUITES.items():
            print(f"{suite}: " + "; ".join(f"{race.name}, {race.evaluations} evaluations" for race in listed))
    sys.exit(0 if good else 1)


def told(unit, done, total):
    print(f"{done}/{total} {unit.race}, {unit.algorithm}, seed {unit.seed}: {unit.seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
