"""Formats beyond integers: each number the nearest one of the published definition, and all bytes counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from moopt.backend import quantizers, weights
from moopt.backend.candidate import Candidate
from moopt.backend.formats import NAMES, Format
from moopt.backend.options import Option
from moopt.backend.simulated import Simulated
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError
from moopt_kernels import KernelError, choose_layout
from tests.backend.conftest import make_model

IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(0))
Table = list[tuple[float, int]]
"""Values, each with its code."""


def minifloat(exponent: int, mantissa: int, without: int) -> Table:
    """The finite values of a format with sign, exponent and mantissa bits: all codes but so many at the top."""
    bias, found = 2 ** (exponent - 1) - 1, []
    for code in range(2 ** (exponent + mantissa) - without):
        e, m = divmod(code, 2**mantissa)
        value = m / 2**mantissa * 2.0 ** (1 - bias) if e == 0 else (1 + m / 2**mantissa) * 2.0 ** (e - bias)
        found += [(value, code), (-value, code)]
    return found


def normal_float() -> Table:
    """NF4 by QLoRA's construction: quantiles of the normal distribution, 8 at and below zero and 9 at and above."""
    offset = 0.5 * (1 - 1 / 30 + 1 - 1 / 32)
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    return [(float(v), 0) for v in values / np.abs(values).max()]


TABLES = {
    "fp4": minifloat(2, 1, without=0),
    "nf4": normal_float(),
    "fp8-e4m3": minifloat(4, 3, without=1),
    "fp8-e5m2": minifloat(5, 2, without=4),
}


def nearest(x: float, table: Table) -> float:
    return min(table, key=lambda entry: (abs(entry[0] - x), entry[1] % 2))[0]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def matrix(n: int = 4, k: int = 64, scale: float = 0.05) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1)) * scale


def test_each_weight_takes_the_nearest_number_of_the_published_format(name: str) -> None:
    table = TABLES[name]
    largest = max(value for value, _ in table)
    x = torch.linspace(-1, 1, 255) * largest
    middles = torch.tensor(
        [(a + b) / 2 for a, b in zip(*(sorted({v for v, _ in table})[i:] for i in (0, 1)), strict=False)]
    )
    x = torch.cat([x, middles, torch.tensor([largest])]) if name != "nf4" else x  # a scale of 1, and every tie
    x = torch.nn.functional.pad(x, (0, -len(x) % 8))[None]
    found = Format(name, x.shape[1]).rounded(x)[0]
    expected = torch.tensor([nearest(float(value), table) for value in x[0]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7 if name == "nf4" else 0)


def test_a_group_is_scaled_to_the_range_by_a_bfloat16(name: str) -> None:
    w, table = matrix(), TABLES[name]
    largest = max(value for value, _ in table)
    found = Format(name, 32).rounded(w)
    for row in range(4):
        for group in (slice(0, 32), slice(32, 64)):
            scale = float((w[row, group].abs().max() / largest).bfloat16())
            expected = [scale * nearest(float(value) / scale, table) for value in w[row, group]]
            torch.testing.assert_close(found[row, group], torch.tensor(expected), rtol=1e-5, atol=1e-9)


def test_the_wider_format_loses_less() -> None:
    w = matrix(64, 256)
    errors = {name: float((Format(name, 64).rounded(w) - w).norm() / w.norm()) for name in NAMES}
    assert errors["fp8-e4m3"] < errors["fp8-e5m2"] < errors["nf4"] < errors["fp4"] < 0.15


def test_the_bytes_are_those_of_codes_and_scales() -> None:
    weight = Weight("a", (64, 128))
    assert Format("nf4", 32).bytes(weight) == Format("fp4", 32).bytes(weight) == 64 * 128 // 2 + 2 * 64 * 4
    assert Format("fp8-e4m3", 64).bytes(weight) == Format("fp8-e5m2", 64).bytes(weight) == 64 * 128 + 2 * 64 * 2
    assert (Format("nf4", 32).bits(weight), Format("fp8-e5m2", 32).bits(weight)) == (4, 8)


def test_zeros_and_the_smallest_and_largest_numbers_stay_finite(name: str) -> None:
    w = matrix()
    w[0] = 0
    w[1] = 1e-38
    w[2, 0] = 65504
    found = Format(name, 32).rounded(w)
    assert found.isfinite().all()
    assert (found[0] == 0).all()
    assert float(found[2, 0]) == pytest.approx(65504, rel=0.01)
    assert torch.equal(Format(name, 32).rounded(w.half()), Format(name, 32).rounded(w.half().float()))


def candidate() -> Candidate:
    model = make_model("llama-tied")
    simulated: dict[Option, Simulated] = {name: Format(name, 32) for name in NAMES}
    matrices = weights.inventory(model).weights
    return Candidate(model, matrices, quantizers.RTN(), 32, torch.device("cpu"), torch.float32, simulated=simulated)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_a_candidate_mixes_formats_and_widths(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", kernels)
    try:
        choose_layout("cpu")
    except KernelError as error:
        pytest.skip(str(error))
    found, dense = candidate(), make_model("llama-tied")
    before = logits(found.model)
    for options in (("nf4", 4, "fp8-e4m3"), (3, "fp4", 8), ("fp8-e5m2", "nf4", 2)):
        chosen: dict[str, Option] = {w.name: options[i % 3] for i, w in enumerate(found.weights)}
        found.use(chosen)
        for weight in found.weights:
            weights.module_of(dense, weight).weight.data = found.weight(weight.name, chosen[weight.name])
        expected = logits(dense)
        assert (logits(found.model) - expected).norm() / expected.norm() < 1e-5
        with found.differentiable():
            assert torch.equal(logits(found.model), expected)
        assert (logits(found.model) - expected).norm() / expected.norm() < 1e-5
    found.use({})
    assert torch.equal(logits(found.model), before)


def test_weights_that_are_not_finite_are_refused() -> None:
    found = candidate()
    name = found.weights[1].name
    found.stored(name)[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=f"The weights of {name} are not finite"):
        found.weight(name, "nf4")


def test_a_group_size_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(QuantizationError, match="group size 48 does not divide the 64 inputs"):
        Format("nf4", 48).rounded(matrix())
