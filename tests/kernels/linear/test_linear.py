"""Linear layers on packed codes give what the dequantized matrix gives, at every width, shape, slice and type."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moopt_kernels import calls, dispatch, quantized_linear, slice_repack, sliced_linear

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Relative Frobenius error against float64; a 16-bit result is rounded once."""

OUTLIER = 1000.0


def activations(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal, with one outlier of 1000x."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[seed % x.numel()] = OUTLIER
    return x.to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).norm() / exact.norm())


def case(m: int, k: int, n: int, bits: int, group: int) -> Any:
    return pytest.param(m, k, n, bits, group, id=f"M{m}-K{k}-N{n}-b{bits}-g{group}")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("m", "k", "n", "bits", "group"),
    [
        *[case(1, 256, 96, bits, 64) for bits in range(2, 9)],
        *[case(40, 256, 96, bits, 64) for bits in range(2, 9)],
        *[case(m, 192, 48, 4, 32) for m in (2, 3, 5, 6, 7, 16, 17, 33, 64)],
        case(1, 512, 32, 3, 128), case(33, 512, 32, 3, 128),
        case(1, 320, 40, 8, 320), case(33, 320, 40, 8, 320),
        case(2, 2176, 64, 5, 64), case(18, 2176, 64, 5, 64), case(70, 2200, 400, 3, 64),
    ],
)  # fmt: skip
def test_it_is_as_accurate_as_its_type(
    layout: dispatch.Layout, draw: Any, poisoned: Any, m: int, k: int, n: int, bits: int, group: int, dtype: torch.dtype
) -> None:
    matrix, x = draw(n, k, bits, group), activations((m, k), dtype)
    weight = matrix.prepack(layout)
    poisoned(4 * m * n)
    assert error(quantized_linear(x, weight), x.double() @ matrix.values().T) < TOLERANCES[dtype]


@pytest.mark.parametrize("group", [32, 64, 128, 1000])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_in_every_group(layout: dispatch.Layout, draw: Any, bits: int, group: int) -> None:
    matrix = draw(40, 300, bits, group)  # an odd number of row blocks, a tail of outputs and one of inputs
    weight = matrix.prepack(layout)
    for dtype in (torch.bfloat16, torch.float32):
        for m in (1, 2, 4, 7):
            x = activations((m, 300), dtype, seed=m)
            assert error(quantized_linear(x, weight), x.double() @ matrix.values().T) < TOLERANCES[dtype]


@given(
    m=st.integers(1, 20), n=st.integers(1, 70), k=st.integers(1, 200), bits=st.integers(2, 8),
    group=st.sampled_from([5, 16, 32, 64, 128, 1000]), symmetric=st.booleans(), biased=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_is_handled(
    layout: dispatch.Layout, draw: Any, m: int, n: int, k: int, bits: int, group: int, symmetric: bool, biased: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    matrix, x = draw(n, k, bits, group, symmetric, seed), activations((m, k), dtype, seed)
    bias = torch.linspace(-1, 1, n).to(dtype) if biased else None
    exact = x.double() @ matrix.values().T + (0 if bias is None else bias.double())
    norm = x.double().norm() * matrix.values().norm()  # what a product is accurate to when its terms cancel
    found = quantized_linear(x, matrix.prepack(layout), bias)
    assert float((found.double() - exact).norm()) <= TOLERANCES[dtype] * float(norm)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("m", [1, 3, 20], ids=lambda m: f"M{m}")
def test_a_slice_is_read_from_its_parent(
    layout: dispatch.Layout, draw: Any, m: int, bits: int, symmetric: bool, dtype: torch.dtype
) -> None:
    parent, x = draw(24, 200, 8, 64, symmetric), activations((m, 200), dtype)
    weight = parent.prepack(layout)
    exact = x.double() @ parent.values(bits).T
    assert error(sliced_linear(x, weight, bits), exact) < TOLERANCES[dtype]
    assert error(quantized_linear(x, slice_repack(weight, bits)), exact) < TOLERANCES[dtype]


def test_leading_dimensions_and_strides_are_kept(layout: dispatch.Layout, draw: Any) -> None:
    weight = (matrix := draw(24, 64, 4, 32)).prepack(layout)
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))[..., ::2]
    found = quantized_linear(x, weight)
    assert found.shape == (2, 5, 24)
    assert error(found, x.double() @ matrix.values().T) < 1e-6
    assert quantized_linear(x[:0], weight).shape == (0, 5, 24)
    assert quantized_linear(x[0, 0], weight).shape == (24,)


def test_zero_activations_give_zero(layout: dispatch.Layout, draw: Any) -> None:
    weight = draw(24, 64, 4, 32).prepack(layout)
    for m in (1, 9):
        assert torch.equal(quantized_linear(torch.zeros(m, 64).bfloat16(), weight), torch.zeros(m, 24).bfloat16())


def test_what_is_not_finite_is_seen(layout: dispatch.Layout, draw: Any) -> None:
    weight, x = draw(24, 64, 4, 32).prepack(layout), torch.ones(64)
    x[3] = torch.inf
    assert not quantized_linear(x, weight).isfinite().any()
    x[3] = torch.nan
    assert quantized_linear(x.bfloat16(), weight).isnan().all()


@pytest.mark.parametrize("bias_dtype", [*TOLERANCES, torch.float64], ids=lambda dtype: f"bias-{dtype}")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
def test_a_bias_of_any_type_is_added(
    layout: dispatch.Layout, draw: Any, dtype: torch.dtype, bias_dtype: torch.dtype
) -> None:
    matrix = draw(24, 64, 8, 32)
    weight, bias = matrix.prepack(layout), torch.linspace(-1, 1, 24).to(bias_dtype)
    for m in (1, 24, 80):
        x = activations((m, 64), dtype)
        exact = x.double() @ matrix.values().T + bias.double()
        assert error(quantized_linear(x, weight, bias), exact) < TOLERANCES[dtype]
        exact = x.double() @ matrix.values(3).T + bias.double()
        assert error(sliced_linear(x, weight, 3, bias), exact) < TOLERANCES[dtype]


@pytest.mark.parametrize("size", [1e-6, 1e5])
@pytest.mark.parametrize("m", [1, 80], ids=lambda m: f"M{m}")
def test_weights_need_not_lie_within_float16(layout: dispatch.Layout, draw: Any, m: int, size: float) -> None:
    matrix = draw(24, 64, 8, 32)
    matrix = dataclasses.replace(matrix, scales=(matrix.scales.float() * size).bfloat16())
    x = (torch.randn(m, 64, generator=torch.Generator().manual_seed(0)) / (50 * size)).clamp(-1e4, 1e4).half()
    found = quantized_linear(x, matrix.prepack(layout))
    assert error(found, x.double() @ matrix.values().T) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("m", [1, 9], ids=lambda m: f"M{m}")
def test_the_operators_pass_opcheck(registered: dispatch.Layout, draw: Any, m: int) -> None:
    weight, x = draw(24, 64, 8, 32).prepack(registered), activations((m, 64), torch.bfloat16)
    parts = (x, weight.codes, weight.scales, weight.zeros, torch.ones(24).bfloat16(), 24)
    torch.library.opcheck(getattr(torch.ops.moopt, f"quantized_linear_{registered}").default, (*parts, 8, 32, 0))
    torch.library.opcheck(getattr(torch.ops.moopt, f"sliced_linear_{registered}").default, (*parts, 3, 32))


def test_it_compiles_whole_and_counts_what_ran(registered: dispatch.Layout, draw: Any) -> None:
    weight, x = draw(24, 64, 8, 32).prepack(registered), activations((3, 64), torch.bfloat16)

    def both(x: Tensor) -> Tensor:
        return quantized_linear(x, weight).relu() + sliced_linear(x, weight, 3)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(x), both(x))
        assert torch.equal(compiled(x[:2]), both(x[:2]))
    ran = "reference" if registered == "plain" else registered
    assert calls() == {("quantized_linear", ran): 4, ("sliced_linear", ran): 4}


def test_what_does_not_fit_is_refused(draw: Any) -> None:
    weight = draw(24, 64, 4, 32).prepack("plain")
    with pytest.raises(ValueError, match=r"x of shape \[2, 60\]; expected \[..., 64\]"):
        quantized_linear(torch.ones(2, 60), weight)
    with pytest.raises(ValueError, match="expected bfloat16, float16 or float32"):
        quantized_linear(torch.ones(2, 64).double(), weight)
    with pytest.raises(ValueError, match="slice of 3 bits from a parent of 4"):
        sliced_linear(torch.ones(2, 64), weight, 3)
