"""Measured allocations: kept whole and once, compared by paired draws of sequences, fronts by dominance."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moopt.bench import allocations
from moopt.errors import StorageError


def unit(method: str, draw: int, samples: list[float], points: list[tuple[int, float]] = ()) -> pd.DataFrame:  # type: ignore[assignment]
    key = {"problem": "p", "method": method, "budget": "", "draw": draw}
    rows = [
        {**key, "order": i, "kind": "evaluate", "spent": 10 * (i + 1), "within": "", "cost": cost, "loss": loss,
         "choice": [0, 1], "samples": None}
        for i, (cost, loss) in enumerate(points)
    ]  # fmt: skip
    held = {"order": len(rows), "kind": "held-out", "spent": 100, "within": "3 bits", "cost": 5}
    rows.append({**key, **held, "loss": float(np.mean(samples)), "choice": [1, 1], "samples": samples})
    return pd.DataFrame(rows)


def test_units_are_kept_once_and_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "a.parquet"
    assert not allocations.has(allocations.read(path), "p", "a", "", 0)
    allocations.add(path, unit("a", 0, [1.0, 2.0], [(3, 0.5)]))
    allocations.add(path, unit("b", 0, [3.0, 4.0]))
    allocations.add(path, unit("a", 0, [5.0, 6.0], [(4, 0.25)]))
    rows = allocations.read(path)
    assert allocations.has(rows, "p", "a", "", 0)
    assert not allocations.has(rows, "p", "a", "", 1)
    assert len(rows) == 3
    assert allocations.held_out(rows, "p", "a", "3 bits")[0].tolist() == [5.0, 6.0]
    assert allocations.points(rows, "p", "a", 0).tolist() == [[4.0, 0.25]]
    assert rows[rows["kind"] == "evaluate"]["choice"].iloc[0].tolist() == [0, 1]


def test_nothing_is_lost_when_two_processes_add(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(allocations.add, [path] * 8, [unit("a", draw, [1.0]) for draw in range(8)]))
    assert sorted(allocations.read(path)["draw"]) == list(range(8))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(StorageError, match="it lacks problem, method"):
        allocations.read(tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not one")
    with pytest.raises(StorageError, match=r"bad\.parquet holds no allocations"):
        allocations.read(tmp_path / "bad.parquet")


def test_a_gain_is_of_pairs_and_its_interval_knows_what_sequences_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.lognormal(0, 1, 64)
    theirs = {draw: hard * (1 + 0.01 * rng.standard_normal(64)) for draw in range(3)}
    ours = {draw: 0.9 * each for draw, each in theirs.items()}
    found = allocations.gain(ours, {**theirs, 7: hard})
    assert found is not None
    assert found.pooled == pytest.approx(0.1)
    assert found.median == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1, abs=1e-6)
    assert found.draws == 3
    apart = allocations.gain({0: hard}, {0: rng.permutation(hard)})
    assert apart is not None
    assert apart.low < 0 < apart.high
    assert allocations.gain({0: hard}, {1: hard}) is None


def test_a_point_is_covered_by_one_that_is_no_worse() -> None:
    ours = np.array([[1.0, 5.0], [3.0, 2.0]])
    assert allocations.dominated(ours, np.array([[1.0, 5.0], [2.0, 5.5], [2.0, 3.0], [4.0, 2.0]])) == 0.75


def test_the_room_below_a_search_is_down_to_the_least_that_anything_found_at_its_cost() -> None:
    uniform = unit("uniform", 0, [1.0])
    searches = [unit("a", draw, [1.0], [(5, loss), (4, loss + 1)]) for draw, loss in enumerate((3.0, 4.0, 9.0))]
    other = unit("b", 0, [1.0], [(5, 3.5), (4, 2.0), (6, 0.1)])
    rows = pd.concat([uniform, *(each.assign(budget="3 bits") for each in searches), other], ignore_index=True)
    assert allocations.room(rows, "p", "a", "3 bits") == pytest.approx(1 - 2.0 / 4.0)
    assert allocations.room(rows, "p", "b", "3 bits") is None
    assert allocations.room(rows[rows["method"] != "uniform"], "p", "a", "3 bits") is None


def test_the_table_says_how_far_one_method_is_below_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for draw in range(2):
        allocations.add(path, unit("auto", draw, [1.0, 2.0, 3.0]))
        allocations.add(path, unit("other", draw, [2.0, 4.0, 6.0]))
    table = allocations.table(allocations.read(path), "p", "auto")
    assert table["method"].tolist() == ["auto", "other"]
    assert table["draws"].tolist() == [2, 2]
    assert table["auto below"].tolist() == ["", "50.0% [50.0%, 50.0%]"]
    allocations.picture(allocations.read(path), "p", tmp_path / "p.html")
    assert "the best within a budget" in (tmp_path / "p.html").read_text()


def test_volumes_are_of_what_was_measured_so_far_and_shares_of_the_best() -> None:
    fronts = {"a": [(1, 8.0), (9, 1.0), (5, 2.0)], "b": [(1, 8.0), (9, 1.0), (5, 4.0)]}
    rows = pd.concat([unit(name, 0, [1.0], points) for name, points in fronts.items()], ignore_index=True)
    uniform = rows["kind"] == "evaluate"
    rows["choice"] = [[0, 0] if u and c != 5 else [0, 1] for u, c in zip(uniform, rows["cost"], strict=True)]
    found = allocations.volumes(rows, "p", [20, 30]).set_index(["method", "tokens"])
    # up to cost 9.8 and loss 8.7; (5, y) adds what is right of it, up to the other end, and below the first one
    both = 0.8 * 7.7 + 8.0 * 0.7
    assert found["volume"]["a", 20] == pytest.approx(found["volume"]["b", 20])
    assert found["volume"]["a", 30] == 1
    assert found["volume"]["b", 30] == pytest.approx((both + 4.0 * 4.0) / (both + 4.0 * 6.0))
    assert (found["volume of log loss"] <= 1).all()
    assert not len(allocations.volumes(rows[~uniform], "p", [20]))
