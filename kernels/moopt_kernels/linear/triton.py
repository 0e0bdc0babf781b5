"""Linear layers on packed codes on a GPU, in Triton: matrix times vector, split-K, and dequantize + cuBLAS."""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.gpu.matrix import Matrix
from moopt_kernels.gpu.tiles import input_columns, load_weights, narrow, rounded
from moopt_kernels.gpu.tuning import FUSED, Config, fastest
from moopt_kernels.quantize.triton import dense

MOST_TOKENS = 512
"""Above so many rows of x the weights are dequantized once and cuBLAS multiplies."""

VECTOR = [
    Config(rows, columns, splits=splits)
    for rows, columns in ((16, 256), (8, 512), (32, 128), (64, 32))
    for splits in (1, 4)
]
"""One row of x."""

MATRIX = [
    Config(rows, columns, splits=splits, warps=warps, stages=stages)
    for rows, columns, warps, stages in (
        (64, 64, 4, 3),
        (128, 64, 8, 3),
        (64, 128, 4, 3),
        (128, 32, 8, 4),
        (64, 32, 4, 4),
    )
    for splits in (1, 4)
]
"""Several rows of x in 16 bits; as many of them at a time as `_tokens` says."""

FLOAT = [Config(64, 32, splits=splits, stages=2) for splits in (1, 8)]
"""Several rows of x in float32, which takes no tensor cores: exact products need more registers."""


@triton.jit
def multiply_vector(
    x, p0, p1, p2, p3, scales, zeros, bias, out, N, K, CELLS, GROUPS, BITS: tl.constexpr, KEEP: tl.constexpr,
    SHIFT: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of x: out[split, n] = its share of W x, summed in float32, across lanes only once, at the end."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for start in range(split * COLUMNS, CELLS * 8, SPLITS * COLUMNS):
        weights = load_weights(
            p0, p1, p2, p3, scales, zeros, rows, start, N, CELLS, GROUPS,
            BITS, KEEP, SHIFT, GROUP, HAS_ZEROS, ROWS, COLUMNS,
        )  # fmt: skip
        columns, real = input_columns(start + tl.arange(0, COLUMNS), K, GROUP, SIZE)
        total += weights * tl.load(x + columns, mask=real, other=0).to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if HAS_BIAS:
        if split == 0:
            result += tl.load(bias + rows, mask=rows < N, other=0).to(tl.float32)
    tl.store(out + split * N + rows, rounded(result, out), mask=rows < N)


@triton.jit
def multiply(
    x, p0, p1, p2, p3, scales, zeros, bias, out, N, K, CELLS, GROUPS, M, BITS: tl.constexpr,
    KEEP: tl.constexpr, SHIFT: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Rows of x: out[split, m, n] = their share of x W^T, as W x^T, so that the weights go from registers to the tensor cores."""  # noqa: E501
    split = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.full([ROWS, TOKENS], 0.0, tl.float32)
    for start in range(split * COLUMNS, CELLS * 8, SPLITS * COLUMNS):
        weights = load_weights(
            p0, p1, p2, p3, scales, zeros, rows, start, N, CELLS, GROUPS,
            BITS, KEEP, SHIFT, GROUP, HAS_ZEROS, ROWS, COLUMNS,
        )  # fmt: skip
        columns, real = input_columns(start + tl.arange(0, COLUMNS), K, GROUP, SIZE)
        mask = real[:, None] & (tokens < M)[None, :]
        inputs = tl.load(x + tokens[None, :] * K + columns[:, None], mask=mask, other=0)
        total = tl.dot(narrow(weights, x), narrow(inputs.to(tl.float32), x), total, input_precision="ieee")
    if HAS_BIAS:
        if split == 0:
            total += tl.load(bias + rows, mask=rows < N, other=0).to(tl.float32)[:, None]
    at = (split * M + tokens[None, :]) * N + rows[:, None]
    tl.store(out + at, rounded(total, out), mask=(rows < N)[:, None] & (tokens < M)[None, :])


def quantized_linear(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,
    n: int, bits: int, group_size: int, shift: int,
) -> Tensor:  # fmt: skip
    """`x W^T + bias` for a W in the triton layout: x [..., k] -> [..., n] in x's type."""
    dispatch.count("quantized_linear", "triton")
    return product(x, Matrix(codes, scales, zeros, (n, x.shape[-1]), group_size, bits, bits, shift), bias)


def sliced_linear(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,
    n: int, bits: int, group_size: int,
) -> Tensor:  # fmt: skip
    """The same for the `bits`-bit slice of an 8-bit parent, sliced in registers."""
    dispatch.count("sliced_linear", "triton")
    return product(x, Matrix(codes, scales, zeros, (n, x.shape[-1]), group_size, 8, bits, 8 - bits), bias)


def product(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    """`x W^T + bias` by the kernel that suits the number of x's rows."""
    n, k = weight.shape
    rows = x.reshape(-1, k)
    m = len(rows)
    if m > MOST_TOKENS:
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype  # weights may lie beyond float16
        added = None if bias is None else bias.to(wide)
        flat = torch.nn.functional.linear(rows.to(wide), dense(weight, wide), added).to(x.dtype)
    elif m == 0 or n == 0:
        flat = rows.new_empty(m, n)
    else:
        flat = _launched(rows.contiguous(), weight, bias)
    return flat.view(*x.shape[:-1], n)


def _launched(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    name, configs = candidates(len(x), x.dtype)
    key = (configs[0].tokens, *weight.shape, weight.group_size, weight.bits, weight.keep, str(x.dtype)[6:])
    launch = functools.partial(run, weight, x, bias)
    return launch(fastest(name, key, weight.fitting(configs), launch))


def candidates(m: int, dtype: torch.dtype) -> tuple[str, list[Config]]:
    """How m rows of x may be multiplied: the kernel's name and its configurations."""
    if m == 1:
        return "multiply_vector", VECTOR
    configs = FLOAT if dtype == torch.float32 else MATRIX
    return "multiply", [with_tokens(config, m) for config in configs]


def with_tokens(config: Config, m: int) -> Config:
    """The configuration for a bucket of M: as many tokens at a time as the next power of two, 16 to 128."""
    return dataclasses.replace(config, tokens=1 if m == 1 else min(128, max(16, triton.next_power_of_2(m))))


def run(weight: Matrix, x: Tensor, bias: Tensor | None, config: Config) -> Tensor:
    """`x W^T + bias`, x [m, k], as the configuration says."""
    (m, k), (n, _), splits = x.shape, weight.shape, config.splits
    out = torch.empty(splits, m, n, dtype=x.dtype if splits == 1 else torch.float32, device=x.device)
    arguments = (x, *weight.pointers(), out if bias is None else bias, out, n, k, *weight.strides())
    named = weight.constants(config) | {"HAS_BIAS": bias is not None, "SPLITS": splits}
    how = {"num_warps": config.warps, "num_stages": config.stages} | FUSED
    if config.tokens == 1:
        multiply_vector[triton.cdiv(n, config.rows), splits](*arguments, **named, **how)
    else:
        grid = (triton.cdiv(n, config.rows), triton.cdiv(m, config.tokens), splits)
        multiply[grid](*arguments, m, **named, TOKENS=config.tokens, **how)
    return out[0] if splits == 1 else out.sum(0).to(x.dtype)
