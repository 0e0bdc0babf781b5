"""What a quantized matrix is: codes in range, errors within half a step, names checked."""

from __future__ import annotations

import pytest
import torch

from moopt.backend import quantizers
from moopt.backend.grid import Grid, find_grid
from moopt.errors import QuantizationError


def matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", quantizers.WIDTHS)
@pytest.mark.parametrize("group_size", [32, 128])
def test_rounding_to_nearest_errs_by_half_a_step(bits: int, group_size: int) -> None:
    weight = matrix()
    found = quantizers.rtn(weight, bits, group_size)
    assert int(found.codes.max()) < 2**bits
    error = (found.dequantize() - weight).abs().view(16, -1, group_size)
    # half a step, half a step more at an end where the zero point was rounded, and the rounding of the scale
    assert (error <= found.scales.float()[..., None] * (1.01 + 2**bits / 256)).all()
    inner = (found.codes > 0) & (found.codes < 2**bits - 1)
    assert (error.view_as(weight)[inner] <= found.scales.float().repeat_interleave(group_size, 1)[inner] * 0.51).all()


@pytest.mark.parametrize("name", [n for n in quantizers.NAMES if n != "matgptq"])
def test_more_bits_err_less(name: str) -> None:
    weight = matrix()
    made = quantizers.named(name)
    errors = [float((made.quantize(weight, bits, 64).dequantize() - weight).norm()) for bits in quantizers.WIDTHS]
    assert errors == sorted(errors, reverse=True)


def test_half_quadratic_never_errs_more_than_rounding() -> None:
    weight = matrix().pow(3) * 0.02
    errors = {
        made.name: (made.quantize(weight, 3, 64).dequantize() - weight).abs().pow(0.7).view(16, 2, 64).sum(-1)
        for made in (quantizers.RTN(), quantizers.HQQ())
    }
    assert (errors["hqq"] <= errors["rtn"] * 1.0001).all()
    assert errors["hqq"].sum() < errors["rtn"].sum()


def test_symmetric_codes_need_no_zero_points() -> None:
    found = quantizers.rtn_symmetric(matrix(), 4, 64)
    assert found.zeros is None
    assert torch.equal(quantizers.rtn_symmetric(-matrix(), 4, 64).dequantize(), -found.dequantize())


def test_a_constant_group_stays_what_it_is() -> None:
    for value in (0.0, 1.0, -2.0):
        weight = torch.full((1, 64), value)
        assert torch.allclose(quantizers.rtn(weight, 2, 64).dequantize(), weight, rtol=1e-2)


def test_a_group_size_that_does_not_divide_names_the_layer_and_both_sizes() -> None:
    with pytest.raises(QuantizationError, match=r"group size 128 does not divide the 576 inputs of model\.q; 32, 64"):
        quantizers.check("model.q", (192, 576), (4,), 128)


def test_an_unsupported_width_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(QuantizationError, match="Got the width 7; expected widths among 2, 3, 4, 5, 6, 8"):
        quantizers.check("q", (64, 64), (7,), 32)
    with pytest.raises(QuantizationError, match="no quantizer 'awq'; expected one of rtn, rtn-symmetric, hqq, gptq"):
        quantizers.named("awq")


def test_the_grid_of_dequantized_weights_is_found_and_random_ones_have_none() -> None:
    assert find_grid(matrix()) is None
    scales = torch.rand(16, 4) * 0.1 + 0.05
    codes = torch.randint(0, 16, (16, 4, 32), generator=torch.Generator().manual_seed(1))
    minima = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    assert find_grid((codes * scales[..., None] + minima[..., None]).view(16, 128)) == Grid(4, 32)
