"""Latency tables: which calls a candidate makes, that figures are kept, and that whole models are measured."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import moopt
import moopt_kernels
from moopt.backend import latency, quiet, weights
from moopt.backend.latency import Table, Timing
from moopt.errors import BackendError
from moopt_problems import BitAllocation
from tests.backend.conftest import SMALL as FAMILY
from tests.backend.conftest import make_model

CPU = torch.device("cpu")

SMALL: dict[str, Any] = {
    "group_size": 32, "text": "prose", "tokens": 64, "context": 32, "held_out": 64, "validation": 0,
    "sensitivities": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    moopt_kernels.choose_layout(CPU)  # compiled kernels come from the user's cache, figures from a test's own
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "MOST_COPIES", 2)


def test_linears_that_read_one_input_at_one_width_are_one_call() -> None:
    inventory = weights.inventory(make_model("llama"))
    widths = {w.name: 4 for w in inventory.weights}
    layer = [(128, 64, 4), (64, 64, 4), (256, 64, 4), (64, 128, 4)]
    assert latency.kernel_calls(inventory, widths) == layer * 2
    assert latency.head_call(inventory, widths) == (320, 64, 4)
    widths["model.layers.0.self_attn.k_proj"] = 2
    del widths["model.layers.1.mlp.up_proj"]
    apart = [(64, 64, 4), (32, 64, 2), (32, 64, 4), (64, 64, 4), (256, 64, 4), (64, 128, 4)]
    assert latency.kernel_calls(inventory, widths) == [
        *apart, (128, 64, 4), (64, 64, 4), (128, 64, 4), (128, 64, 16), (64, 128, 4)
    ]  # fmt: skip


def test_figures_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    table = Table(torch.device("cpu"), 32, False)
    timing = table.call((64, 64, 4), 1)
    assert timing.median > 0
    assert table.call((64, 64, 16), 3).median > 0
    assert table.sum([(64, 64, 4)] * 3, 1) == pytest.approx(3 * timing.median)
    again = Table(torch.device("cpu"), 32, False)
    assert again.call((64, 64, 4), 1) == timing
    assert again.figure("odd", lambda: Timing(2.0, 0.5)).median == 2.0
    assert Table(torch.device("cpu"), 32, False).figure("odd", lambda: Timing(9.0, 9.0)) == Timing(2.0, 0.5)


def test_workers_keep_the_figure_of_the_first_and_damage_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    one, other = Table(CPU, 32, False), Table(CPU, 32, False)
    assert one.figure("call", lambda: Timing(2.0, 0.5)) == other.figure("call", lambda: Timing(9.0, 9.0))
    symmetric = Table(CPU, 32, True)
    assert symmetric.figure("call", lambda: Timing(3.0, 0.5)).median == 3.0
    (path,) = tmp_path.glob("latency/*/*.json")
    if moopt_kernels.choose_layout(CPU) == "cpu":
        assert path.name.startswith("lowbit-")  # other kernels, other figures
    path.write_text('{"call-g32-bfloat16": [], "odd": 3}')
    assert Table(CPU, 32, False).figure("call", lambda: Timing(4.0, 0.5)).median == 4.0


def free(device: torch.device, name: str, how: int) -> bool:
    """Whether another process would get a lock at once."""
    with (quiet.folder(device) / f"{name}.lock").open() as handle:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_who_times_waits_for_all_others_and_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_CACHE", str(tmp_path))
    with quiet.at_work(CPU), quiet.at_work(CPU):  # many can work
        assert not free(CPU, "work", fcntl.LOCK_EX)
        assert free(CPU, "gate", fcntl.LOCK_EX)
    seen = []

    def measure() -> Timing:
        seen.extend(free(CPU, name, fcntl.LOCK_SH) for name in ("gate", "work"))
        return Timing(1.0, 0.0)

    Table(CPU, 32, False).figure("call", measure)
    assert seen == [False, False]
    assert free(CPU, "gate", fcntl.LOCK_EX)
    assert free(CPU, "work", fcntl.LOCK_EX)


def test_candidates_are_measured_while_nobody_times(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 8), **SMALL)
    problem.setup(moopt.Resources())
    assert problem._bench is not None
    found: list[bool] = []
    embedding = problem._bench.evaluator.candidate.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda *_: found.append(free(CPU, "work", fcntl.LOCK_EX)))
    problem.evaluate(problem.baselines()["uniform-8"], problem.fidelity)
    assert found
    assert not any(found)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt"])
def test_every_kind_of_cache_is_timed(family: str) -> None:
    windows = {"mistral": ("MistralConfig", 16), "gemma2": ("Gemma2Config", 16)}
    if family in windows:
        kind, window = windows[family]
        config = getattr(transformers, kind)(**{**FAMILY, "head_dim": 16}, sliding_window=window)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        model = make_model(family)
    found = latency.whole(model, 64)
    assert found["decode_ms"].median > 0
    assert found["prefill_ms"].median > 0
    with pytest.raises(BackendError, match=r"Got context=256; .* has 256 positions"):
        latency.whole(model, 256)


def test_pinning_is_undone() -> None:
    before = torch.get_num_threads()
    with quiet.pinned(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_study_trades_loss_for_time_and_measures_its_finalists_whole(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 8), objectives=("kl", "decode_ms", "prefill_ms"), **SMALL)
    assert problem.objectives[1].unit.endswith("moopt runtime, 1 thread, batch 1, context 32")
    history = moopt.Study("times", problem, "random").run(trials=4).history
    assert history.front()
    for trial in history.front():
        measured = history.measures[trial.number, "latency"]
        assert set(measured.values) == {"decode_ms", "prefill_ms"}
        assert measured.values["decode_ms"] > 0
        assert measured.attributes["where"] == "moopt runtime, 1 thread, batch 1, context 32"
        assert measured.attributes["decode_ms predicted"] == pytest.approx(trial.values["decode_ms"])
        assert measured.attributes["prefill_ms spread"] >= 0


def test_latency_jobs_run_alone(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 8), objectives=("kl", "decode_ms"), **SMALL)
    study = moopt.Study("alone", problem, "random").run(trials=3)
    alone = {e.job.fidelity.batch for e in study.history.events if e.job.exclusive}
    assert alone == {"latency"}
