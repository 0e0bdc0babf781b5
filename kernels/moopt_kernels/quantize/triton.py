"""Weights to codes and back on a GPU, in Triton."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.gpu import planes
from moopt_kernels.gpu.matrix import Matrix
from moopt_kernels.gpu.tiles import input_columns, load_codes, load_weights, rounded, store_codes
from moopt_kernels.gpu.tuning import FUSED, Config
from moopt_kernels.layout import Prepacked

TILES = [Config(32, 128), Config(32, 64), Config(32, 32)]
"""Tiles of what is written; the first that fits. What bounds these kernels is memory."""


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


@triton.jit
def quantize_group(
    weight, p0, p1, p2, p3, scales, zeros, N, K, CELLS, GROUPS, BITS: tl.constexpr, GROUP: tl.constexpr,
    SIZE: tl.constexpr, HAS_ZEROS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Round one group of each of some rows to the nearest codes; divisions are exact, so that numbers are a CPU's."""
    rows, group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    low, high = tl.full([ROWS], 0.0, tl.float32), tl.full([ROWS], 0.0, tl.float32)
    for start in range(group * GROUP, (group + 1) * GROUP, COLUMNS):
        columns, real = input_columns(start + tl.arange(0, COLUMNS), K, GROUP, SIZE)
        mask = (rows < N)[:, None] & real[None, :]
        values = tl.load(weight + rows[:, None] * K + columns[None, :], mask=mask, other=0).to(tl.float32)
        low, high = tl.minimum(low, tl.min(values, 1)), tl.maximum(high, tl.max(values, 1))
    at = rows * GROUPS + group
    LAST: tl.constexpr = (1 << BITS) - 1
    if HAS_ZEROS:
        scale = rounded(tl.maximum(tl.div_rn(high - low, LAST + low * 0), 1e-8), scales)
        zero = tl.minimum(nearest(tl.div_rn(-low, scale.to(tl.float32))), LAST)
        tl.store(zeros + at, zero.to(tl.int32), mask=rows < N)
    else:
        scale = rounded(tl.maximum(tl.div_rn(tl.maximum(-low, high), LAST // 2 + low * 0), 1e-8), scales)
        zero = low * 0 + (1 << (BITS - 1))
    tl.store(scales + at, scale, mask=rows < N)
    for start in range(group * GROUP, (group + 1) * GROUP, COLUMNS):
        columns, real = input_columns(start + tl.arange(0, COLUMNS), K, GROUP, SIZE)
        mask = (rows < N)[:, None] & real[None, :]
        values = tl.load(weight + rows[:, None] * K + columns[None, :], mask=mask, other=0).to(tl.float32)
        steps = nearest(tl.div_rn(values, scale.to(tl.float32)[:, None] + values * 0)) + zero[:, None]
        codes = tl.where(real[None, :], tl.minimum(tl.maximum(steps, 0), LAST), 0).to(tl.int32)
        cells = start // 8 + tl.arange(0, COLUMNS // 8)
        at_cells = rows[:, None] * CELLS + cells[None, :]
        store_codes(
            p0, p1, p2, p3, at_cells, (rows < N)[:, None] & (cells < CELLS)[None, :], codes, BITS, ROWS, COLUMNS
        )


@triton.jit
def nearest(x):
    """The nearest whole number, of two the even one, where |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def slice_codes(
    p0, p1, p2, p3, o0, o1, o2, o3, N, CELLS, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The KEEP-bit slice of 8-bit codes, packed anew."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cells = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
    at, mask = rows[:, None] * CELLS + cells[None, :], (rows < N)[:, None] & (cells < CELLS)[None, :]
    codes = load_codes(p0, p1, p2, p3, at, mask, 8, KEEP, ROWS, COLUMNS)
    store_codes(o0, o1, o2, o3, at, mask, codes, KEEP, ROWS, COLUMNS)


def dequantize(weight: Prepacked, dtype: torch.dtype) -> Tensor:
    """The matrix [n, k] that a prepacked one stands for."""
    dispatch.count("dequantize", "triton")
    return dense(Matrix.of(weight), dtype)


def dense(weight: Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix [n, k] of what is read of the codes."""
    (n, k), config = weight.shape, weight.fitting(TILES)[0]
    out = torch.empty(n, k, dtype=dtype, device=weight.codes.device)
    grid = (triton.cdiv(n, config.rows), triton.cdiv(weight.columns, config.columns))
    if out.numel():
        write_weights[grid](*weight.pointers(), out, n, k, *weight.strides(), **weight.constants(config), **FUSED)
    return out


def quantize_weight(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Prepacked:
    """Round a matrix [n, k] to the nearest codes and pack them."""
    dispatch.count("quantize_weight", "triton")
    n, k = weight.shape
    scales = weight.new_empty(n, -(-k // group_size), dtype=torch.bfloat16)
    zeros = None if symmetric else torch.empty_like(scales, dtype=torch.uint8)
    found = _empty(scales, zeros, bits, group_size, (n, k))
    matrix = Matrix.of(found)
    config = Config(32, math.gcd(matrix.group, 128))
    constants = {name: value for name, value in matrix.constants(config).items() if name not in ("KEEP", "SHIFT")}
    grid = (triton.cdiv(n, config.rows), scales.shape[1])
    if weight.numel():
        quantize_group[grid](weight.contiguous(), *matrix.pointers(), n, k, *matrix.strides(), **constants, **FUSED)
    return found


def slice_repack(parent: Prepacked, bits: int) -> Prepacked:
    """The `bits`-bit slice of an 8-bit parent as a matrix of its own."""
    dispatch.count("slice_repack", "triton")
    found = _empty(parent.scales, parent.zeros, bits, parent.group_size, parent.shape, shift=8 - bits)
    matrix, config = Matrix.of(parent), TILES[0]
    (n, _), cells = parent.shape, matrix.columns // 8
    pointers = (*matrix.pointers()[:4], *Matrix.of(found).pointers()[:4])
    if found.codes.numel():
        grid = (triton.cdiv(n, config.rows), triton.cdiv(matrix.columns, config.columns))
        slice_codes[grid](*pointers, n, cells, KEEP=bits, ROWS=config.rows, COLUMNS=config.columns, **FUSED)
    return found


def _empty(
    scales: Tensor, zeros: Tensor | None, bits: int, group_size: int, shape: tuple[int, int], shift: int = 0
) -> Prepacked:
    """Room for codes."""
    count = shape[0] * planes.filled_columns(shape[1], group_size) * bits // 8
    codes = scales.new_empty(count, dtype=torch.uint8)
    return Prepacked(codes, scales, zeros, bits, group_size, shape, "triton", shift)
