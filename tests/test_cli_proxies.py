"""`moopt proxies` on a tiny model and its own measured allocations, and on the table that comes with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from moopt import cli_proxies
from moopt.cli import app
from moopt_problems import BitAllocation
from moopt_problems.data import SMOLLM2
from tests.backend.conftest import byte_tokenizer, save, tiny

__all__ = ["byte_tokenizer", "save", "tiny"]

Run = Callable[..., Result]


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path / "cache"))
    arguments = {
        "bits": (2, 4, 8),
        "group_size": 32,
        "text": "prose",
        "tokens": 256,
        "context": 64,
        "held_out": 0,
        "validation": 0,
    }
    (tmp_path / "mine.py").write_text(
        "import moopt\nfrom moopt_problems import BitAllocation\n"
        f"study = moopt.Study('mine', BitAllocation({str(tiny)!r}, **{arguments!r}))\n"
    )
    space = BitAllocation(str(tiny), **arguments).space
    rng = np.random.default_rng(0)
    table = pd.DataFrame([space.sample(rng) for _ in range(12)])
    table["size"] = np.repeat([3.0, 4.0], 6)
    table["kl"] = 1 / table[list(space)].sum(axis=1)
    table.to_parquet("bench.parquet")
    return lambda *words: CliRunner().invoke(app, ["proxies", *words])


def test_proxies_are_ranked_and_kept_for_the_second_time(run: Run) -> None:
    words = ("mine.py", "--bench", "bench.parquet", "--only", "output-error,weight-error", "--tokens", "256")
    first = run(*words, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["allocations"] == 12
    by_name = {row["proxy"]: row for row in found["proxies"]}
    assert by_name["output-error"]["forward_tokens"] == 256
    assert by_name["weight-error"]["forward_tokens"] == 0
    interval = by_name["weight-error"]["by_size"]["3.0"]
    assert -1 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert "output-error: making its table" in first.stderr
    second = run(*words)
    assert second.exit_code == 0
    assert "making" not in second.stderr
    assert "mean of sizes" in second.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mine.py", "--bench", "none.parquet"), "There is no file none.parquet; studies/proxy_bench.py makes"),
        (("mine.py", "--bench", "mine.py"), "mine.py is no Parquet file"),
        (("mine.py", "--bench", "bench.parquet", "--only", "magic"), "There is no proxy 'magic'"),
        (
            ("mine.py", "--bench", "bench.parquet", "--set", "bits=4,8"),
            "do not fit BitAllocation: they have no 0",
        ),
    ],
)
def test_what_does_not_fit_is_said(run: Run, words: tuple[str, ...], said: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_the_table_that_comes_with_the_package_is_of_three_sizes() -> None:
    bench = cli_proxies.read_bench(SMOLLM2)
    problem = BitAllocation(**bench.attrs["arguments"])
    known = cli_proxies.measured(bench, problem)
    assert len(known.losses) >= 200
    assert set(known.sizes) == {3.0, 3.5, 4.0}
    configs = [problem.space.decode(row) for row in known.options]
    bits = np.array([problem.bits(config) for config in configs])
    assert (np.abs(bits / known.sizes - 1) <= 0.01).all()
    assert SMOLLM2.stat().st_size < 200_000
