"""Triton's linear layers give what the dequantized matrix gives; interpreted where there is no GPU, so small shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moopt_kernels import calls, dequantize, quantized_linear, slice_repack, sliced_linear
from moopt_kernels.gpu.matrix import Matrix
from moopt_kernels.linear import triton as kernels

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
TYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])


def activations(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Normal, with one outlier of 1000x."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[seed % x.numel()] = 1000.0
    return x.to(device, dtype)


def error(found: Tensor, exact: Tensor, norm: Tensor | None = None) -> float:
    assert found.shape == exact.shape
    return float((found.cpu().double() - exact).norm() / (exact if norm is None else norm).norm())


@TYPES
@pytest.mark.parametrize("m", [1, 17], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("bits", range(1, 9), ids=lambda b: f"K192-N24-b{b}-g64")
def test_it_is_as_accurate_as_its_type(device: str, draw: Any, m: int, bits: int, dtype: torch.dtype) -> None:
    matrix, x = draw(24, 192, bits, 64), activations((m, 192), dtype, device)
    found = quantized_linear(x, matrix.prepack("triton", device))
    assert error(found, x.cpu().double() @ matrix.values().T) < TOLERANCES[dtype]
    assert calls()["quantized_linear", "triton"] == 1


@settings(max_examples=20)
@given(
    m=st.sampled_from([1, 2, 33]), n=st.integers(1, 40), k=st.integers(1, 200), bits=st.integers(1, 8),
    group=st.sampled_from([5, 24, 32, 64, 100, 128, 1000]), symmetric=st.booleans(), biased=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_is_handled(
    device: str, draw: Any, m: int, n: int, k: int, bits: int, group: int, symmetric: bool, biased: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    matrix, x = draw(n, k, bits, group, symmetric, seed), activations((m, k), dtype, device, seed)
    bias = torch.linspace(-1, 1, n, dtype=dtype, device=device) if biased else None
    exact = x.cpu().double() @ matrix.values().T + (0 if bias is None else bias.cpu().double())
    norm = x.cpu().double().abs() @ matrix.values().abs().T + 1e-30  # what cancels leaves no relative error
    assert error(quantized_linear(x, matrix.prepack("triton", device), bias), exact, norm) <= TOLERANCES[dtype]


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("m", [1, 3], ids=lambda m: f"M{m}")
def test_a_slice_is_read_from_its_parent(device: str, draw: Any, m: int, bits: int, symmetric: bool) -> None:
    parent, x = draw(24, 72, 8, 24, symmetric), activations((m, 72), torch.float32, device)
    exact = x.cpu().double() @ parent.values(bits).T
    weight = parent.prepack("triton", device)
    assert error(sliced_linear(x, weight, bits), exact) < 1e-6
    assert error(quantized_linear(x, slice_repack(weight, bits)), exact) < 1e-6


@pytest.mark.parametrize("config", kernels.VECTOR + kernels.MATRIX + kernels.FLOAT, ids=str)
def test_every_configuration_gives_the_same(device: str, draw: Any, config: Any) -> None:
    m = 3 if config in kernels.MATRIX + kernels.FLOAT else 1
    matrix, x = draw(20, 256, 3, 128), activations((m, 256), torch.float32, device)
    weight = Matrix.of(matrix.prepack("triton", device))
    found = kernels.run(weight, x, None, kernels.with_tokens(config, m))
    assert error(found, x.cpu().double() @ matrix.values().T) < 1e-6


def test_many_rows_are_multiplied_by_the_dequantized_matrix(device: str, draw: Any) -> None:
    matrix, x = draw(24, 72, 5, 24), activations((kernels.MOST_TOKENS + 1, 72), torch.bfloat16, device)
    found = quantized_linear(x, matrix.prepack("triton", device), torch.ones(24, device=device))
    assert error(found, x.cpu().double() @ matrix.values().T + 1) < 4e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 3e-3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_it_dequantizes(device: str, draw: Any, symmetric: bool, dtype: torch.dtype, tolerance: float) -> None:
    matrix = draw(33, 100, 7, 24, symmetric)
    assert error(dequantize(matrix.prepack("triton", device), dtype), matrix.values()) <= tolerance
    assert calls()["dequantize", "triton"] == 1


def test_the_operators_pass_opcheck_and_compile_whole(device: str, draw: Any) -> None:
    weight, x = draw(24, 64, 8, 32).prepack("triton", device), activations((2, 64), torch.bfloat16, device)
    parts = (x, weight.codes, weight.scales, weight.zeros, None, 24)
    torch.library.opcheck(torch.ops.moopt.quantized_linear_triton.default, (*parts, 8, 32, 0))
    torch.library.opcheck(torch.ops.moopt.sliced_linear_triton.default, (*parts, 3, 32))

    def both(x: Tensor) -> Tensor:
        return quantized_linear(x, weight).relu() + sliced_linear(x, weight, 3)

    with torch.inference_mode():
        assert torch.equal(torch.compile(both, fullgraph=True, backend="aot_eager")(x), both(x))


def test_what_is_empty_stays_empty(device: str, draw: Any) -> None:
    weight = draw(24, 64, 4, 32).prepack("triton", device)
    assert quantized_linear(torch.ones(0, 5, 64, device=device), weight).shape == (0, 5, 24)
    assert quantized_linear(torch.zeros(64, device=device), weight).tolist() == [0.0] * 24
