"""Weights to codes and back on a GPU, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.gpu.matrix import Matrix
from moopt_kernels.gpu.tiles import input_columns, load_weights, rounded
from moopt_kernels.gpu.tuning import FUSED, Config
from moopt_kernels.layout import Prepacked

DENSE = [Config(32, 128), Config(32, 64), Config(32, 32)]
"""Tiles of what is dequantized; the first that fits."""


@triton.jit
def write_weights(
    p0, p1, p2, p3, scales, zeros, out, N, K, CELLS, GROUPS, BITS: tl.constexpr, KEEP: tl.constexpr,
    SHIFT: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, HAS_ZEROS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dequantize a tile."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1) * COLUMNS
    weights = load_weights(
        p0, p1, p2, p3, scales, zeros, rows, start, N, CELLS, GROUPS,
        BITS, KEEP, SHIFT, GROUP, HAS_ZEROS, ROWS, COLUMNS,
    )  # fmt: skip
    columns, real = input_columns(start + tl.arange(0, COLUMNS), K, GROUP, SIZE)
    mask = (rows < N)[:, None] & real[None, :]
    tl.store(out + rows[:, None] * K + columns[None, :], rounded(weights, out), mask=mask)


def dequantize(weight: Prepacked, dtype: torch.dtype) -> Tensor:
    """The matrix [n, k] that a prepacked one stands for."""
    dispatch.count("dequantize", "triton")
    return dense(Matrix.of(weight), dtype)


def dense(weight: Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix [n, k] of what is read of the codes."""
    (n, k), config = weight.shape, weight.fitting(DENSE)[0]
    out = torch.empty(n, k, dtype=dtype, device=weight.codes.device)
    grid = (triton.cdiv(n, config.rows), triton.cdiv(weight.columns, config.columns))
    if out.numel():
        write_weights[grid](*weight.pointers(), out, n, k, *weight.strides(), **weight.constants(config), **FUSED)
    return out
