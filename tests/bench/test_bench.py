"""A benchmark: every search once, stored whole, scored against what is known, compared by seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import moopt
from moopt import pareto
from moopt.bench import kept, plots, runner, scores, table, units
from moopt.bench.races import Race
from moopt.bench.searchers import PEERS, searcher
from moopt.cli import app
from moopt.errors import AlgorithmError, CapabilityError, StorageError, StudyError
from moopt.jobs import perform
from moopt_problems.synthetic import BitToy, Noisy, Ordinalised, PymooFunction

TOY = partial(BitToy, 6, scale="log", sensitivities=False)
LIGHT = [name for name in PEERS if name not in ("botorch-qlognehvi", "optuna-gp", "amq")]


class Mixed(moopt.Problem):
    """Every kind of variable, a constraint, a known objective and one to maximise."""

    space = moopt.Space(
        {"x": moopt.Float(0, 2), "b": moopt.Ordinal(2, 4, 8), "n": moopt.Integer(3, 6), "c": moopt.Choice("s", "t")}
    )
    objectives = (moopt.Objective("gain", "max", reference=-5.0), moopt.Objective("size", known=True, reference=20.0))
    constraints = (moopt.Constraint("heat", bound=3.0),)

    def known(self, config: moopt.Config) -> dict[str, float]:
        return {"size": float(config["b"] + config["n"])}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        gain = config["x"] * config["b"] - (config["c"] == "s")
        return moopt.Evaluation({"gain": gain, "heat": config["x"] + config["n"] / 3})

    def baselines(self) -> dict[str, moopt.Config]:
        return {"least": {"x": 0.0, "b": 2, "n": 3, "c": "t"}}


def small(**changes: object) -> Race:
    settings: dict[str, object] = {"name": "toy", "make": TOY, "evaluations": 16, "algorithms": ["random", "nsga2"]}
    return Race(**{**settings, "seeds": range(3), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*LIGHT, "random", "nsga2@population_size=6"])
@pytest.mark.parametrize("make", [TOY, Mixed, partial(PymooFunction, "bnh")], ids=["levels", "mixed", "constrained"])
def test_every_search_spends_what_it_may_and_repeats(name: str, make: type[moopt.Problem]) -> None:
    race = small(make=make, evaluations=30)
    first, again = (runner.search(race, name, seed=3) for _ in range(2))
    assert len(first.values) == 30
    assert first.spent == list(range(1, 31))
    assert first.values == again.values
    assert first.truth == first.values
    assert runner.search(race, name, seed=4).values != first.values


def test_amq_searches_bit_allocations_better_than_chance_and_refuses_what_it_cannot() -> None:
    race = small(algorithms=["amq", "random"], evaluations=150, seeds=range(1))
    found, again, chance = (
        runner.search(race, "amq", 0),
        runner.search(race, "amq", 0),
        runner.search(race, "random", 0),
    )
    assert found.values == again.values
    target = scores.target(race, [found, chance])
    assert target.share(found.front(150)) > target.share(chance.front(150))
    with pytest.raises(StudyError, match="one measured objective and then a known one"):
        runner.search(small(make=Mixed), "amq", 0)


@pytest.mark.parametrize("make", [partial(BitToy, 3, uniform=False), Mixed], ids=["levels", "mixed"])
@pytest.mark.parametrize(("name", "first"), [("botorch-qlognehvi", 4), ("optuna-gp", 10)])
def test_the_gaussian_processes_search_levels_and_mixtures(name: str, first: int, make: type[moopt.Problem]) -> None:
    problem = make()
    one = searcher(name, problem, 8, 0)
    for _ in range(first + 1):
        job = one.ask()
        assert job is not None
        assert job.config == problem.space.validate(job.config)
        one.tell(job, perform(problem, job))


@pytest.mark.parametrize("name", [*PEERS, "random", "nsga2"])
def test_everyone_begins_with_the_baselines(name: str) -> None:
    problem = BitToy(3)
    one, found = searcher(name, problem, 40, 0), []
    for _ in problem.baselines():
        job = one.ask()
        assert job is not None
        one.tell(job, perform(problem, job))
        found.append(job.config)
    assert found == list(problem.baselines().values())


def test_auto_competes_and_the_table_says_what_it_took(tmp_path: Path) -> None:
    long = small(name="long", evaluations=1001, algorithms=["auto"], seeds=[0])
    short = small(name="short", make=BitToy, algorithms=["auto", "sequential-knapsack"], seeds=[0])
    found = runner.run([long, short], tmp_path)
    assert [unit.took for unit in found] == ["nsga2", "sequential-knapsack", "sequential-knapsack"]
    assert found[1].values == found[2].values
    summary = table.summary(table.units_frame([long, short], found), "auto")
    assert summary["algorithm"].tolist() == ["auto", "auto", "sequential-knapsack"]
    assert table.shown(summary)["algorithm"].tolist() == [
        "auto (nsga2)", "auto (sequential-knapsack)", "sequential-knapsack",
    ]  # fmt: skip


def test_what_is_stored_is_not_searched_again(tmp_path: Path) -> None:
    race, told = small(), []
    first = runner.run([race], tmp_path, watch=lambda unit, done, total: told.append((done, total)))
    assert told == [(n, 6) for n in range(1, 7)]
    units.path(tmp_path, "toy", "nsga2", 1).unlink()
    again = runner.run([race], tmp_path, watch=lambda unit, done, total: told.append((done, total)))
    assert told[6:] == [(6, 6)]
    assert [unit.values for unit in again] == [unit.values for unit in first]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_bench_that_is_stopped_keeps_what_was_finished(tmp_path: Path) -> None:
    def stop(unit: units.Unit, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run([small()], tmp_path, watch=stop)
    assert len(runner.finished([small()], tmp_path)) == 2
    assert len(runner.run([small()], tmp_path)) == 6


def test_what_is_kept_in_a_file_is_restored_and_not_searched_again(tmp_path: Path) -> None:
    races = [small(seeds=range(2)), small(name="noisy", make=partial(Noisy, BitToy(4), share=0.1), seeds=range(1))]
    found, file = runner.run(races, tmp_path / "first"), tmp_path / "kept" / "units.parquet"
    kept.add(file, found[:2])
    kept.add(file, found[1:])
    ordered = sorted(found, key=lambda unit: (unit.race, unit.algorithm, unit.seed))
    assert kept.read(file) == ordered
    assert kept.restore(file, tmp_path / "second") == len(found)
    assert kept.restore(file, tmp_path / "second") == 0
    told: list[object] = []
    assert runner.run(races, tmp_path / "second", watch=lambda *args: told.append(args)) == found
    assert not told


def test_a_file_that_is_not_there_keeps_nothing_and_one_that_is_damaged_is_named(tmp_path: Path) -> None:
    assert kept.restore(tmp_path / "none.parquet", tmp_path) == 0
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StorageError, match=r"bad\.parquet holds no units"):
        kept.read(tmp_path / "bad.parquet")


def test_processes_find_the_same(tmp_path: Path) -> None:
    race = small(seeds=range(2))
    alone, together = (runner.run([race], tmp_path / str(n), workers=n) for n in (1, 2))
    assert [unit.values for unit in alone] == [unit.values for unit in together]


def test_units_of_another_problem_are_not_taken_for_ours(tmp_path: Path) -> None:
    runner.run([small(seeds=[0])], tmp_path)
    with pytest.raises(StudyError, match=r"race 'toy' that differs in .*seed.*space"):
        runner.run([small(make=partial(BitToy, 7, seed=1))], tmp_path)
    units.path(tmp_path, "toy", "random", 0).write_text("{")
    with pytest.raises(StorageError, match="no unit of a benchmark"):
        runner.run([small()], tmp_path)


def test_scales_and_constraints_are_part_of_a_race() -> None:
    plain = small(make=Mixed).identity
    assert small(make=Logarithmic).identity != plain != small(make=Cooler).identity


class Logarithmic(Mixed):
    objectives = (Mixed.objectives[0], replace(Mixed.objectives[1], scale="log"))


class Cooler(Mixed):
    constraints = (moopt.Constraint("heat", bound=2.0),)


def test_names_and_needs_are_checked() -> None:
    with pytest.raises(AlgorithmError, match=r"no algorithm 'nsga-2'.*Or auto; the peers are amq, botorch-qlognehvi"):
        runner.run([small(algorithms=["nsga-2"])], Path("nowhere"))
    with pytest.raises(AlgorithmError, match="population"):
        runner.run([small(algorithms=["nsga2@populations=3"])], Path("nowhere"))
    with pytest.raises(CapabilityError, match="SequentialKnapsack needs gradient, which BitToy lacks"):
        runner.search(small(), "sequential-knapsack", 0)
    with pytest.raises(StudyError, match="3 evaluations; expected 4 or more"):
        small(evaluations=3)


def test_a_table_of_sensitivities_counts_as_the_evaluations_it_costs() -> None:
    unit = runner.search(small(make=partial(TOY, sensitivities="counted")), "random", 0)
    assert unit.spent == list(range(7, 17))


def test_pending_candidates_end_in_another_order_and_are_all_counted() -> None:
    unit = runner.search(small(pending=4, evaluations=40), "nsga2@population_size=8", 0)
    assert len(unit.values) == 40
    assert unit.idle == 0


def test_noise_is_searched_and_truth_is_scored() -> None:
    race = small(make=partial(Noisy, BitToy(6, scale="log", sensitivities=False)))
    one, other = (runner.search(race, "random", seed) for seed in (0, 1))
    assert one.values != one.truth
    assert one.values[0] != other.values[0]  # a baseline, with each search's own noise
    assert one.truth[0] == other.truth[0]
    assert 0 < len(one.front(16)) < 16
    assert {tuple(point) for point in one.front(16)} <= {tuple(point) for point in one.truth}
    assert pareto.nondominated(one.values).sum() == len(one.front(16))


def test_shares_are_of_the_exact_front_where_there_is_one() -> None:
    race = small()
    problem = TOY()
    target = scores.target(race, [])
    assert target.exact
    assert target.share(problem.front()) == pytest.approx(1.0)
    assert target.distance(problem.front()) == pytest.approx(0.0)
    half = problem.front()[::2]
    assert 0 < target.distance(half) < 0.1
    assert target.share(np.zeros((0, 2))) == 0.0
    assert target.distance(np.zeros((0, 2))) == np.inf


def test_shares_are_of_the_best_known_where_there_is_no_front() -> None:
    race = small(make=partial(Ordinalised, PymooFunction("dtlz2", 4, 2)))
    found = [runner.search(race, "random", seed) for seed in range(3)]
    target = scores.target(race, found)
    assert not target.exact
    assert target.share(np.concatenate([unit.front(16) for unit in found])) == pytest.approx(1.0)
    assert all(target.share(unit.front(16)) <= 1 for unit in found)


def test_an_objective_to_maximise_is_scored_with_its_sign() -> None:
    race = small(make=Mixed)
    found = [runner.search(race, "random", 0)]
    target = scores.target(race, found)
    assert target.reference.tolist() == [5.0, 20.0]
    assert target.maximum == pytest.approx(pareto.hypervolume(found[0].front(16), [5.0, 20.0]))


def test_infeasible_points_are_no_part_of_a_front() -> None:
    unit = runner.search(small(make=Mixed, evaluations=40), "random", 0)
    assert 0 < len(unit.front(40)) < 40


def frame(**shares: list[float]) -> pd.DataFrame:
    rows = [
        {"race": "r", "algorithm": name, "took": name, "seed": seed, **dict.fromkeys(table.SHARES, value), "IGD+": 0.1,
         "seconds a suggestion": 1.0, "of the best known": False}
        for name, values in shares.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_table_tells_medians_and_what_is_more_than_luck() -> None:
    base = [0.5 + 0.01 * seed for seed in range(11)]
    better, same = [value + 0.1 + value / 100 for value in base], base
    found = table.summary(frame(base=base, better=better, same=same), "base").set_index("algorithm")
    assert found.loc["base", "share at N"] == pytest.approx(0.55)
    assert found.loc["base", "IQR"] == pytest.approx(0.05)
    assert found.loc["better", "p"] == pytest.approx(2 / 2**10)  # Wilcoxon's 2 / 2**11, twice: Holm of two
    assert found.loc["same", "p"] == 1.0
    assert np.isnan(found.loc["base", "p"])
    with pytest.raises(StudyError, match="No unit of 'nobody' is finished"):
        table.summary(frame(base=base), "nobody")
    with pytest.raises(StudyError, match="nothing to tabulate"):
        table.summary(table.units_frame([small()], []))


def test_holm_is_the_textbooks() -> None:
    assert table.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert table.holm([0.6, 0.9]) == [1.0, 1.0]
    assert table.holm([]) == []


def test_half_of_the_sets_attain_the_median_surface() -> None:
    sets = [np.array([[0.0, 2.0], [2.0, 0.0]]), np.array([[1.0, 1.0]]), np.array([[3.0, 3.0]])]
    surface = plots.median_attainment(sets)
    for corner in surface:
        assert sum((points <= corner).all(axis=1).any() for points in sets) >= 2


def test_sets_without_a_point_attain_nothing() -> None:
    one, nothing = np.array([[1.0, 2.0]]), np.zeros((0, 2))
    assert plots.median_attainment([nothing, nothing]).shape == (0, 2)
    assert plots.median_attainment([one, nothing, nothing]).shape == (0, 2)
    assert plots.median_attainment([one, nothing]).tolist() == [[1.0, 2.0]]
    assert plots.median_attainment([one, one + 1, nothing]).tolist() == [[2.0, 3.0]]


class Hopeless(Mixed):
    """Nothing that is measured is feasible; the front is known all the same."""

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        return moopt.Evaluation({"gain": 0.0, "heat": 9.0})

    def front(self) -> np.ndarray:
        return np.array([[5.0, 12.0]])


def test_a_race_without_anything_feasible_is_drawn(tmp_path: Path) -> None:
    race = small(make=Hopeless, algorithms=["random"])
    found = [runner.search(race, "random", seed) for seed in race.seeds]
    plots.write([race], found, tmp_path / "plots.html")
    assert "share of the hypervolume" in (tmp_path / "plots.html").read_text()


def test_what_no_point_beats_has_no_share() -> None:
    race = small(make=Worse, algorithms=["random"])
    found = [runner.search(race, "random", 0)]
    assert scores.target(race, found).share(found[0].front(16)) == 0


class Worse(Mixed):
    """Is nowhere better than its reference."""

    objectives = (moopt.Objective("gain", "max", reference=99.0), moopt.Objective("size", known=True, reference=0.0))


def test_the_command_compares_and_goes_on(tmp_path: Path) -> None:
    toy = tmp_path / "toys.py"
    toy.write_text(
        "from moopt_problems.synthetic import BitToy\n\n\nclass Six(BitToy):\n    def __init__(self, layers: int = 6) "
        "-> None:\n        super().__init__(layers, scale='log')\n"
    )
    asked = [
        "bench", f"{toy}:Six", f"{toy}:Six@layers=4", "--algorithms", "random,nsga2", "--evaluations", "12",
        "--seeds", "3", "--against", "random", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0, first.output
    assert "12/12" in first.stderr
    assert "share at N/2" in first.stdout
    again = CliRunner().invoke(app, [*asked, "--json"])
    assert "12/12" not in again.stderr
    rows = json.loads(again.stdout)["table"]
    assert [(row["algorithm"], row["seeds"]) for row in rows] == [("random", 3), ("nsga2", 3)] * 2
    assert rows[0]["p"] is None
    page = (tmp_path / "out" / "plots.html").read_text()
    assert page.count('id="figure-') == 4
    assert "cdn.plot.ly" not in page.split("</script>")[-1]
    assert len(pd.read_csv(tmp_path / "out" / "units.csv")) == 12


def test_the_command_refuses_before_anything_runs(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for asked, said in (
        (["bench", "nowhere.py:X", *out], "no file nowhere.py"),
        (["bench", "moopt_problems.synthetic:BitToy", "--against", "tpe", *out], "expected one of the algorithms"),
        (["bench", "moopt_problems.synthetic:BitToy", "--algorithms", "best", *out], "no algorithm 'best'"),
        (["bench", "moopt_problems.synthetic:BitToy@layer=3", *out], "did you mean 'layers'"),
    ):
        found = CliRunner().invoke(app, asked)
        assert found.exit_code == 2
        assert said in found.stderr
    assert not (tmp_path / "out").exists()
