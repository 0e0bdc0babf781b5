"""Binary coding: scales are three powers of two, levels are sums of them, and what a user relies on."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from moopt.backend.inputs import Inputs
from moopt.backend.proxies.shiftadd import criterion
from moopt.backend.quantizers import BCQ, GPTQ, RTN
from moopt.backend.quantizers.bcq import powers_of_two
from moopt.errors import ProblemError, QuantizationError
from moopt_problems import BitAllocation
from tests.backend.test_eora import SMALL
from tests.backend.test_gptq import GROUP, layer, output_error

POWERS = [0.0, *(sign * 2.0**e for sign, e in product((-1, 1), range(-13, 2)))]


def sums(terms: int) -> set[float]:
    return {sum(chosen) for chosen in product(POWERS, repeat=terms)}


def test_scales_are_the_nearest_powers_of_two_of_what_is_left() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)) + 0.05
    found = powers_of_two(values)
    possible = torch.tensor(sorted(sums(3)))
    assert torch.isin(found, possible.float()).all()
    assert torch.equal(found, found.bfloat16().float())
    assert ((found - values).abs() <= values / 27 + 2.0**-8).all()  # each term leaves a third at most
    exact = torch.tensor([0.0, -1.0, 0.75, 1.375, -0.625])
    assert torch.equal(powers_of_two(exact), exact)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_values_are_signed_sums_of_the_scales(bits: int) -> None:
    weight, inputs = layer(0)
    found = BCQ().quantize(weight, bits, GROUP, inputs)
    assert found.scales.shape == (12, 64 // GROUP, bits)
    assert torch.equal(powers_of_two(found.scales.float()), found.scales.float())
    values = found.dequantize().view(12, -1, GROUP)
    for n, g in ((0, 0), (5, 2), (11, 3)):
        scales = found.scales[n, g].double()
        levels = [float((scales * torch.tensor(signs)).sum()) for signs in product((-1.0, 1.0), repeat=bits)]
        for value in values[n, g]:
            assert min(abs(value - level) for level in levels) < 1e-6


@pytest.mark.parametrize("bits", [2, 3])
def test_it_loses_less_than_rounding(bits: int) -> None:
    weight, inputs = layer(1, n=48, k=128)
    rounded = output_error(RTN().quantize(weight, bits, GROUP).dequantize(), weight, inputs)
    assert output_error(BCQ().quantize(weight, bits, GROUP, inputs).dequantize(), weight, inputs) < 0.5 * rounded


def test_more_bits_err_less_and_wide_matrices_are_gptqs() -> None:
    weight, inputs = layer(2)
    errors = [output_error(BCQ().quantize(weight, b, GROUP, inputs).dequantize(), weight, inputs) for b in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(
        BCQ().quantize(weight, 8, GROUP, inputs).dequantize(), GPTQ().quantize(weight, 8, GROUP, inputs).dequantize()
    )


def test_groups_of_one_value_or_none_are_no_trouble() -> None:
    for value in (0.0, 1.0, -2.0):
        weight = torch.full((3, 64), value)
        assert torch.allclose(BCQ().quantize(weight, 2, 32).dequantize(), weight, atol=1e-3)
    weight, inputs = layer(3)
    weight[0] = 0
    moment = inputs.moment.clone()
    moment[5], moment[:, 5] = 0, 0
    assert BCQ().quantize(weight, 3, GROUP, Inputs("dead", moment, 9)).dequantize().isfinite().all()


def test_candidates_are_measured_from_values_marked_and_not_saved(tiny: Path, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 3, 8), quantizer="bcq", **SMALL)
    found = problem.evaluate(problem.baselines()["uniform-3"], problem.fidelity)
    assert found.attributes["simulated"] == ["bcq"]
    weight = problem.inventory.linears()[0]
    evaluator = problem._ready.evaluator
    calibration = evaluator.candidate.calibration
    assert calibration is not None
    inputs = calibration.inputs(weight.name)
    expected = (
        BCQ().quantize(evaluator.candidate.stored(weight.name), 3, 32, inputs).dequantize(evaluator.candidate.dtype)
    )
    assert torch.equal(evaluator.candidate.weight(weight.name, 3), expected)
    with pytest.raises(QuantizationError, match="No kernel runs the codes of 'bcq'"):
        problem.save(problem.baselines()["uniform-3"], tmp_path / "model.safetensors")
    with pytest.raises(ProblemError, match="decode_ms or prefill_ms, and bcq, which no kernel runs"):
        BitAllocation(str(tiny), quantizer="bcq", objectives=("kl", "decode_ms"), **SMALL)


def test_a_scale_for_each_bit_and_no_zero_points_are_counted(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 3, 8), quantizer="bcq", **SMALL)
    uniform = problem.baselines()
    groups = sum(w.count // 32 for w in problem.inventory.linears())
    count = sum(w.count for w in problem.inventory.linears())
    known = {bits: problem.bytes(uniform[f"uniform-{bits}"]) for bits in (2, 3, 8)}
    assert known[3] - known[2] == count // 8 + 2 * groups
    assert known[8] - known[3] == 5 * count // 8 + (3 - 2 * 3) * groups


def test_the_criterion_is_the_papers() -> None:
    weight, inputs = layer(4)
    h = inputs.moment.double().numpy()
    inverse = np.linalg.inv(h + 0.01 * np.diag(h).mean() * np.eye(64))
    m = weight.double().numpy() / np.diag(np.linalg.cholesky(inverse).T)
    expected = np.linalg.norm(m) * m.std(ddof=1) ** 2
    assert criterion(weight, inputs) == pytest.approx(float(expected), rel=1e-4)


def test_the_criterion_is_a_proxy(tiny: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 3), **SMALL)
    table = problem.sensitivities("shiftaddllm", 512)
    assert table.shape == (len(problem.decided), 2)
    assert np.allclose(table[:, 0], 4 * table[:, 1])
