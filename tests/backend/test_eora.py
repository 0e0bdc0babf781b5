"""Low-rank repairs: the least output error of their rank, exact bytes, the same model in the search and when loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moopt
from moopt.backend import latency, options, packed
from moopt.backend.inputs import Inputs
from moopt.backend.options import rank_of
from moopt.backend.quantizers import GPTQ, RTN, EoRA, MatGPTQ, RTNSymmetric
from moopt.backend.quantizers.eora import closed_form
from moopt.errors import BackendError, QuantizationError
from moopt.problem import Fidelity
from moopt_problems import BitAllocation
from tests.backend.test_gptq import layer
from tests.backend.test_packed import UP, forge, placed

SMALL: dict[str, Any] = {
    "group_size": 32, "text": "prose", "tokens": 256, "context": 64, "held_out": 256, "validation": 0,
    "sensitivity_tokens": 1024, "calibration_tokens": 1024,
}  # fmt: skip


def alternating(residual: Tensor, moment: Tensor, rank: int) -> float:
    """The least error by alternating least squares in float64: one factor solved for, then the other."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(rank, residual.shape[1], generator=generator, dtype=torch.float64)
    for _ in range(400):
        up = torch.linalg.solve(down @ moment @ down.T, down @ moment @ residual.T).T
        down = torch.linalg.solve(up.T @ up, up.T @ residual)
    return lost(residual - up @ down, moment)


def lost(error: Tensor, moment: Tensor) -> float:
    return float(((error @ moment) * error).sum())


@pytest.mark.parametrize("shape", [(12, 64), (96, 64), (64, 64)], ids=str)
@pytest.mark.parametrize("rank", [1, 6])
def test_the_closed_form_is_the_optimum_of_alternating_least_squares(shape: tuple[int, int], rank: int) -> None:
    weight, inputs = layer(0, *shape)
    residual, moment = weight - RTN().quantize(weight, 3, 16).dequantize(), inputs.moment.double()
    found = closed_form(residual, rank, inputs.moment)
    assert found.up.shape == (shape[0], rank)
    assert found.down.shape == (rank, shape[1])
    expected = alternating(residual.double(), moment, rank)
    assert lost(residual.double() - found.up @ found.down, moment) == pytest.approx(expected, rel=1e-4)


def test_it_equals_the_papers_formula_and_lower_ranks_are_its_first_columns() -> None:
    weight, inputs = layer(1, 20, 64)
    residual = (weight - RTN().quantize(weight, 2, 16).dequantize()).double()
    values, vectors = torch.linalg.eigh(inputs.moment.double())
    root = vectors * values.sqrt()
    u, s, v = torch.linalg.svd(residual @ root, full_matrices=False)
    for rank in (1, 3, 8):
        expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
        found = closed_form(residual, 8, inputs.moment)
        assert torch.allclose(found.up[:, :rank] @ found.down[:rank], expected, atol=1e-6)


def test_inputs_that_are_always_zero_or_unknown_are_no_trouble() -> None:
    weight, inputs = layer(2)
    residual = weight - RTN().quantize(weight, 3, 16).dequantize()
    for moment in (inputs.moment * 0, torch.outer(inputs.moment[0], inputs.moment[0]), inputs.moment):
        found = EoRA().repair(residual, 4, Inputs("layer", moment, 5))
        assert (residual - found.up.float() @ found.down.float()).norm() <= 1.01 * residual.norm()
    plain = EoRA().repair(residual, 4)
    least = torch.linalg.svdvals(residual.double())[4:].square().sum().sqrt()
    assert float((residual - plain.up.float() @ plain.down.float()).norm()) == pytest.approx(float(least), rel=1e-3)
    assert float(EoRA().repair(residual * 0, 4).down.norm()) == 0


def test_its_codes_are_its_bases() -> None:
    weight, inputs = layer(3)
    for base in (RTN(), GPTQ(act_order=False)):
        made = EoRA(base).quantize(weight, 3, 16, inputs)
        assert torch.equal(made.codes, base.quantize(weight, 3, 16, inputs).codes)
        assert EoRA(base).key == base.key  # and are stored once
    assert EoRA(RTN()).settings() != EoRA().settings()


@pytest.mark.parametrize("settings", [{"base": MatGPTQ()}, {"base": RTNSymmetric()}, {"base": EoRA()}, {"base": "rtn"}])
def test_bases_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match="expected an RTN, HQQ or GPTQ"):
        EoRA(**settings)


def test_ranks_that_do_not_fit_are_refused(tiny: Path) -> None:
    with pytest.raises(QuantizationError, match="Got ranks=8; expected whole numbers"):
        EoRA(ranks=8)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match=r"Got ranks=\(0, -1\)"):
        EoRA(ranks=(0, -1))


def test_layers_get_the_ranks_below_their_own(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 4), quantizer=EoRA(RTN(), ranks=(0, 16, 32)), **SMALL)
    lowest = {name: min(min(w.shape) for w in decision.weights) for name, decision in problem.decided.items()}
    assert {*lowest.values()} == {32, 64}
    for name, decision in problem.decided.items():
        assert max(map(rank_of, decision.options)) == (16 if lowest[name] == 32 else 32)
    most = {name: max(decision.options, key=rank_of) for name, decision in problem.decided.items()}
    assert 0 < problem.evaluate(most, Fidelity(256, 0)).values["kl"]
    alone = BitAllocation(str(tiny), bits=(2, 4), quantizer=EoRA(RTN(), ranks=(32,)), **SMALL)
    for name, decision in alone.decided.items():
        assert decision.options == ((2, 4) if lowest[name] == 32 else ("2+r32", "4+r32"))
    with pytest.raises(QuantizationError, match="Got the rank 64; expected less than 64, the most that a layer has"):
        BitAllocation(str(tiny), quantizer=EoRA(ranks=(0, 64)), **SMALL)


@pytest.fixture
def problem(tiny: Path) -> BitAllocation:
    return BitAllocation(str(tiny), bits=(2, 4), quantizer=EoRA(RTN(), ranks=(0, 4, 8)), **SMALL)


def test_every_width_may_have_every_rank_ordered_by_bytes(problem: BitAllocation) -> None:
    for name, decision in problem.decided.items():
        assert {*decision.options} == {2, 4, "2+r4", "2+r8", "4+r4", "4+r8"}
        row = problem.costs()[list(problem.decided).index(name)]
        assert (np.diff(row) >= 0).all()
    assert problem.bits(problem.baselines()["uniform-2"]) == 2
    first = problem.inventory.linears()
    extra = sum(16 * 4 * sum(w.shape) for w in first) / sum(w.count for w in first)
    assert problem.bits(problem.baselines()["uniform-2+r4"]) == pytest.approx(2 + extra)


def test_a_saved_candidate_has_the_promised_bytes_and_is_the_one_that_was_measured(
    problem: BitAllocation, tmp_path: Path
) -> None:
    config = problem.space.sample(np.random.default_rng(0))
    path = problem.save(config, tmp_path / "model.safetensors")
    assert path.stat().st_size == problem.bytes(config)
    ranks = {name: options.rank_of(option) for name, option in problem.widths(config).items()}
    file = packed.read(path)
    assert {name: len(repair.down) for name, repair in file.repairs.items()} == {n: r for n, r in ranks.items() if r}
    ids = torch.arange(40).view(2, 20)
    problem.evaluate(config, problem.fidelity)
    candidate = problem._ready.evaluator.candidate.model
    loaded = moopt.load(path)
    with torch.inference_mode():
        expected, found = candidate(input_ids=ids).logits.float(), loaded(input_ids=ids).logits.float()
    assert (found - expected).norm() < 0.02 * expected.norm()
    kept = loaded.state_dict()
    assert not any(name.endswith((".up", ".down")) for name in kept)  # whoever saves the model saves whole weights
    loaded.load_state_dict(kept)


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(entries: dict[str, Any]) -> None:
        before = dict(entries)
        entries.clear()
        entries.update({"other" if key == name else key: value for key, value in before.items()})

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (renamed(f"{UP}.down"), "has half a repair"),
        (placed(f"{UP}.up", "shape", [4, 128]), r"has a repair of \[4, 128\] by \[4, 64\], expected 128 by 64"),
    ],
    ids=["half", "shape"],
)
def test_a_file_with_a_repair_that_does_not_fit_is_refused(
    problem: BitAllocation, tmp_path: Path, change: Any, told: str
) -> None:
    path = problem.save(problem.baselines()["uniform-2+r4"], tmp_path / "model.safetensors")
    forge(path, change)
    with pytest.raises(BackendError, match=told):
        packed.read(path)


def test_a_repair_repairs(problem: BitAllocation) -> None:
    kl = {name: problem.evaluate(config, problem.fidelity).values["kl"] for name, config in problem.baselines().items()}
    assert kl["uniform-2+r8"] < kl["uniform-2+r4"] < kl["uniform-2"]
    fisher = problem.sensitivities("fisher", 512)
    for row, decision in zip(fisher, problem.decided.values(), strict=True):
        assert row[decision.options.index("2+r8")] < row[decision.options.index(2)]


def test_slices_have_no_repairs(problem: BitAllocation, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="it needs a width, and no repair"):
        problem.save_slices({"front": problem.baselines()["uniform-2+r4"]}, tmp_path / "front.safetensors")


def test_a_repair_is_two_more_products_in_the_latency(problem: BitAllocation) -> None:
    widths = problem.widths(problem.baselines()["uniform-2"])
    name, weight = next((w.name, w) for w in problem.inventory.linears())
    added = [*latency.kernel_calls(problem.inventory, {**widths, name: "2+r4"})]
    for call in latency.kernel_calls(problem.inventory, widths):
        added.remove(call)
    assert sorted(added) == sorted([(4, weight.shape[1], 16), (weight.shape[0], 4, 16)])
