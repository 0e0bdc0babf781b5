"""What every Triton kernel reads its weights with: tiles of codes and of dequantized weights. Runs on the device only.

In Triton's interpreter arithmetic in bfloat16 is silently wrong: whatever is loaded is widened at once, and narrowed
before `tl.dot` only where it is not interpreted (`narrow`). It also cuts bits off where it should round (`rounded`).
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def spread_bits(x):
    """A byte of 8 bits as 8 nibbles of one bit."""
    x = (x | (x << 12)) & 0x000F000F
    x = (x | (x << 6)) & 0x03030303
    return (x | (x << 3)) & 0x11111111


@triton.jit
def spread_pairs(x):
    """Two bytes of 8 pairs of bits as 8 nibbles of two bits."""
    x = x & 0xFFFF
    x = (x | (x << 8)) & 0x00FF00FF
    x = (x | (x << 4)) & 0x0F0F0F0F
    return (x | (x << 2)) & 0x33333333


@triton.jit
def unfold(words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Words of 8 nibbles [ROWS, COLUMNS / 8] as their nibbles [ROWS, COLUMNS], in order, without leaving the thread."""
    halves = tl.join(words, words >> 16)
    bytes_ = tl.join(halves, halves >> 8)
    return tl.reshape(tl.join(bytes_, bytes_ >> 4), [ROWS, COLUMNS]) & 15


@triton.jit
def load_codes(p0, p1, p2, p3, at, mask, BITS: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip  # noqa: E501
    """The codes [ROWS, COLUMNS] of the elements `at` [ROWS, COLUMNS / 8]: of BITS bits, sliced to the KEEP highest.

    A slice is rounded half up and clamped (MatGPTQ); only the planes it needs are read.
    """
    first = tl.load(p0 + at, mask=mask, other=0).to(tl.int32)
    LOW: tl.constexpr = low_bits(BITS, KEEP)
    if BITS == 1:
        first = spread_bits(first)
    elif BITS <= 3:
        first = spread_pairs(first)
        if BITS == 3:
            first = (first << 1) | spread_bits(tl.load(p1 + at, mask=mask, other=0).to(tl.int32))
    codes = unfold(first, ROWS, COLUMNS)
    if LOW > 0:
        if BITS == 6:
            rest = spread_pairs(tl.load(p1 + at, mask=mask, other=0).to(tl.int32))
        elif BITS == 7:
            rest = spread_pairs(tl.load(p1 + at, mask=mask, other=0).to(tl.int32)) << 1
            rest |= spread_bits(tl.load(p2 + at, mask=mask, other=0).to(tl.int32))
        else:
            rest = spread_bits(tl.load(p1 + at, mask=mask, other=0).to(tl.int32))
            if LOW >= 2:
                rest = (rest << 1) | spread_bits(tl.load(p2 + at, mask=mask, other=0).to(tl.int32))
            if LOW == 4:
                rest = (rest << 2) | spread_pairs(tl.load(p3 + at, mask=mask, other=0).to(tl.int32))
        codes = (codes << LOW) | unfold(rest, ROWS, COLUMNS)
    if BITS > KEEP:
        CUT: tl.constexpr = 4 + LOW - KEEP
        codes = tl.minimum((codes + (1 << CUT >> 1)) >> CUT, (1 << KEEP) - 1)
    return codes


@triton.constexpr_function
def low_bits(bits, keep):
    """How many bits below the highest four a code, or the slice of one, needs."""
    if bits == keep:
        return max(bits - 4, 0)
    return {1: 0, 2: 0, 3: 0, 4: 1, 5: 2}.get(keep, 4)


@triton.jit
def load_weights(
    p0, p1, p2, p3, scales, zeros, rows, start, N, CELLS, GROUPS, BITS: tl.constexpr, KEEP: tl.constexpr,
    SHIFT: tl.constexpr, GROUP: tl.constexpr, HAS_ZEROS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The weights [ROWS, COLUMNS] in float32, from the column `start` on; GROUP divides COLUMNS or is divided by it."""
    cells = start // 8 + tl.arange(0, COLUMNS // 8)
    at = rows[:, None] * CELLS + cells[None, :]
    mask = (rows < N)[:, None] & (cells < CELLS)[None, :]
    codes = load_codes(p0, p1, p2, p3, at, mask, BITS, KEEP, ROWS, COLUMNS)
    SPAN: tl.constexpr = COLUMNS // GROUP if COLUMNS > GROUP else 1
    groups = start // GROUP + tl.arange(0, SPAN)
    at = rows[:, None] * GROUPS + groups[None, :]
    mask = (rows < N)[:, None] & (groups < GROUPS)[None, :]
    scale = tl.load(scales + at, mask=mask, other=0).to(tl.float32)[:, :, None]
    grouped = tl.reshape((codes << SHIFT).to(tl.float32), [ROWS, SPAN, COLUMNS // SPAN])
    if HAS_ZEROS:
        grouped -= tl.load(zeros + at, mask=mask, other=0).to(tl.float32)[:, :, None]
    else:
        grouped -= 1 << (KEEP + SHIFT - 1)
    return tl.reshape(grouped * scale, [ROWS, COLUMNS])


@triton.jit
def input_columns(columns, K, GROUP: tl.constexpr, SIZE: tl.constexpr):
    """Where in x filled-up columns lie, and which of them are real: GROUP codes are stored for SIZE inputs."""
    if GROUP == SIZE:
        return columns, columns < K
    inside = columns % GROUP
    real = columns // GROUP * SIZE + inside
    return real, (inside < SIZE) & (real < K)


@triton.jit
def narrow(values, like):
    """Values in the type of the pointer `like`, for tensor cores; float32 in the interpreter."""
    if INTERPRETED:
        return values
    return values.to(like.dtype.element_ty)


@triton.jit
def rounded(values, like):
    """Float32 values in the type of the pointer `like`, rounded to the nearest even."""
    if INTERPRETED and like.dtype.element_ty == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        values = (bits & -65536).to(tl.float32, bitcast=True)
    return values.to(like.dtype.element_ty)


@triton.jit
def fold(codes, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The lowest WIDTH bits of codes [ROWS, COLUMNS] as elements of eight codes [ROWS, COLUMNS / 8]."""
    cells = tl.reshape(codes & ((1 << WIDTH) - 1), [ROWS, COLUMNS // 8, 8])
    return tl.sum(cells << (tl.arange(0, 8) * WIDTH)[None, None, :], 2)


@triton.jit
def store_codes(p0, p1, p2, p3, at, mask, codes, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What `load_codes` loads."""
    WIDTH: tl.constexpr = 4 if BITS >= 4 else 2 if BITS >= 2 else 1
    tl.store(p0 + at, fold(codes >> (BITS - WIDTH), WIDTH, ROWS, COLUMNS), mask=mask)
    if BITS == 3 or BITS == 5:
        tl.store(p1 + at, fold(codes, 1, ROWS, COLUMNS), mask=mask)
    if BITS == 6:
        tl.store(p1 + at, fold(codes, 2, ROWS, COLUMNS), mask=mask)
    if BITS == 7:
        tl.store(p1 + at, fold(codes >> 1, 2, ROWS, COLUMNS), mask=mask)
        tl.store(p2 + at, fold(codes, 1, ROWS, COLUMNS), mask=mask)
    if BITS == 8:
        tl.store(p1 + at, fold(codes >> 3, 1, ROWS, COLUMNS), mask=mask)
        tl.store(p2 + at, fold(codes >> 2, 1, ROWS, COLUMNS), mask=mask)
        tl.store(p3 + at, fold(codes, 2, ROWS, COLUMNS), mask=mask)
