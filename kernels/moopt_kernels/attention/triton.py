"""Attention over a packed cache on a GPU, in Triton: flash decoding, the tokens divided among programs and joined."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.gpu.tiles import narrow, rounded, spread_pairs, unfold
from moopt_kernels.gpu.tuning import FUSED

TOKENS = {2: 64, 4: 16}
"""Tokens a program reads at a time, by the bytes of q's type: float32 takes no tensor cores, but more registers."""

PROGRAMS = 264
"""About how many programs to start: two for each of the 132 multiprocessors of an H100 or H200."""

MOST_SPLITS = 64

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The smallest finite number rather than minus infinity: a row that may look nowhere is not NaN."""


@triton.jit
def load_tokens(
    codes, scales, lows, tokens, count, start, BITS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Keys or values [TILE, DIM] of some tokens of one head, in float32; zero beyond `count` and beyond SIZE."""
    channels, valid = tl.arange(0, DIM), tokens < count
    if BITS >= 8:
        at = tokens[:, None].to(tl.int64) * SIZE + channels[None, :]
        wide = tl.load(codes + at, mask=valid[:, None] & (channels < SIZE)[None, :], other=0).to(tl.float32)
    else:
        cells = tl.arange(0, DIM // 8)
        at = tokens[:, None].to(tl.int64) * (SIZE // 8) + cells[None, :]
        words = tl.load(codes + at, mask=valid[:, None] & (cells < SIZE // 8)[None, :], other=0).to(tl.int32)
        if BITS == 2:
            words = spread_pairs(words)
        wide = unfold(words, TILE, DIM).to(tl.float32)
    if BITS < 16 and GROUP == 0:
        scale = tl.load(scales + tokens, mask=valid, other=0).to(tl.float32)
        low = tl.load(lows + tokens, mask=valid, other=0).to(tl.float32)
        wide = wide * scale[:, None] + low[:, None]
    elif BITS < 16:
        SPAN: tl.constexpr = TILE // GROUP if TILE > GROUP else 1
        groups = start // GROUP + tl.arange(0, SPAN)
        at = groups[:, None] * SIZE + channels[None, :]
        mask = (groups * GROUP < count)[:, None] & (channels < SIZE)[None, :]
        scale = tl.load(scales + at, mask=mask, other=0).to(tl.float32)[:, None, :]
        low = tl.load(lows + at, mask=mask, other=0).to(tl.float32)[:, None, :]
        wide = tl.reshape(tl.reshape(wide, [SPAN, TILE // SPAN, DIM]) * scale + low, [TILE, DIM])
    return wide


@triton.jit
def attend(
    q, query, k, v, peak, total, sums, mask, places, tokens, valid, rows, ROWS, LENGTH, QUERIES, scale,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys and values into the running maximum, sum of exponentials and weighted sum."""
    logits = tl.dot(query, tl.trans(narrow(k, q)), input_precision="ieee") * scale
    if HAS_MASK:
        at = mask + places[:, None].to(tl.int64) * LENGTH + tokens[None, :]
        seen = tl.load(at, mask=(rows < ROWS)[:, None] & valid[None, :], other=0) != 0
    else:
        seen = tokens[None, :] <= (LENGTH - QUERIES + places)[:, None]
    logits = tl.where(seen, logits, LOWEST)
    higher = tl.maximum(peak, tl.max(tl.where(valid[None, :], logits, LOWEST), 1))
    weights = tl.where(valid[None, :], tl.exp(logits - higher[:, None]), 0.0)
    shrink = tl.exp(peak - higher)
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(narrow(weights, q), narrow(v, q), sums * shrink[:, None], input_precision="ieee")
    return higher, total, sums


@triton.jit
def attend_split(
    q, k_codes, k_scales, k_lows, v_codes, v_scales, v_lows, k_window, v_window, mask, peaks, totals, out,
    scale, QUERIES, ROWS, HEADS, PACKED, WINDOW, K_ROOM, K_GROUPS, V_ROOM, SHARE, K_BITS: tl.constexpr,
    V_BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MASK: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows, queries of the heads that share keys, over SHARE tokens; the last split has the window too."""
    head, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    rows, channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DIM)
    places, length = rows % QUERIES, PACKED + WINDOW
    real = (rows < ROWS)[:, None] & (channels < SIZE)[None, :]
    at = (head * ROWS + rows[:, None]) * SIZE + channels[None, :]
    query = narrow(tl.load(q + at, mask=real, other=0).to(tl.float32), q)
    mask += head // HEADS * QUERIES * length
    peak, total = tl.full([BLOCK], LOWEST, tl.float32), tl.full([BLOCK], 0.0, tl.float32)
    sums = tl.full([BLOCK, DIM], 0.0, tl.float32)
    K_CELL: tl.constexpr = 8 if K_BITS < 8 else 1
    V_CELL: tl.constexpr = 8 if V_BITS < 8 else 1
    k_codes += head * K_ROOM * (SIZE // K_CELL)
    v_codes += head * V_ROOM * (SIZE // V_CELL)
    K_WIDTH: tl.constexpr = SIZE if GROUP else 1
    end = tl.minimum((split + 1) * SHARE, PACKED)
    for start in range(split * SHARE, end, TILE):
        tokens = start + tl.arange(0, TILE)
        k = load_tokens(
            k_codes, k_scales + head * K_GROUPS * K_WIDTH, k_lows + head * K_GROUPS * K_WIDTH, tokens, end, start,
            K_BITS, GROUP, SIZE, DIM, TILE,
        )  # fmt: skip
        v = load_tokens(
            v_codes, v_scales + head * V_ROOM, v_lows + head * V_ROOM, tokens, end, start, V_BITS, 0, SIZE, DIM, TILE
        )
        peak, total, sums = attend(
            q, query, k, v, peak, total, sums, mask, places, tokens, tokens < end, rows, ROWS, length, QUERIES, scale,
            HAS_MASK,
        )  # fmt: skip
    if split == splits - 1:
        k_window += head * WINDOW * SIZE
        v_window += head * WINDOW * SIZE
        for start in range(0, WINDOW, TILE):
            tokens = start + tl.arange(0, TILE)
            k = load_tokens(k_window, k_scales, k_lows, tokens, WINDOW, start, 16, 0, SIZE, DIM, TILE)
            v = load_tokens(v_window, v_scales, v_lows, tokens, WINDOW, start, 16, 0, SIZE, DIM, TILE)
            peak, total, sums = attend(
                q, query, k, v, peak, total, sums, mask, places, PACKED + tokens, tokens < WINDOW, rows, ROWS, length,
                QUERIES, scale, HAS_MASK,
            )  # fmt: skip
    at = (head * splits + split) * ROWS + rows
    tl.store(peaks + at, peak, mask=rows < ROWS)
    tl.store(totals + at, total, mask=rows < ROWS)
    tl.store(out + at[:, None] * SIZE + channels[None, :], sums, mask=real)


@triton.jit
def join_splits(
    peaks, totals, sums, out, ROWS, SPLITS, SIZE: tl.constexpr, DIM: tl.constexpr, MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of the result from what their splits, at most MOST, found."""
    head, rows = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    splits, channels = tl.arange(0, MOST), tl.arange(0, DIM)
    at = (head * SPLITS + splits)[:, None] * ROWS + rows[None, :]
    real = (splits < SPLITS)[:, None] & (rows < ROWS)[None, :]
    peak = tl.load(peaks + at, mask=real, other=LOWEST)
    weight = tl.where((splits < SPLITS)[:, None], tl.exp(peak - tl.max(peak, 0)[None, :]), 0.0)
    total = tl.sum(weight * tl.load(totals + at, mask=real, other=1), 0)
    mask = real[:, :, None] & (channels < SIZE)[None, None, :]
    found = tl.load(sums + at[:, :, None] * SIZE + channels[None, None, :], mask=mask, other=0)
    joined = rounded(tl.sum(weight[:, :, None] * found, 0) / total[:, None], out)
    at = (head * ROWS + rows)[:, None] * SIZE + channels[None, :]
    tl.store(out + at, joined, mask=(rows < ROWS)[:, None] & (channels < SIZE)[None, :])


def kv_attention(
    q: Tensor, k_codes: Tensor, k_scales: Tensor, k_lows: Tensor, v_codes: Tensor, v_scales: Tensor, v_lows: Tensor,
    k_window: Tensor, v_window: Tensor, mask: Tensor | None, scale: float, packed: int, k_bits: int, v_bits: int,
    group: int,
) -> Tensor:  # fmt: skip
    """Attention of q [B, Hq, Q, D], in q's type; see `quantized_kv_attention`."""
    dispatch.count("quantized_kv_attention", "triton")
    batch, heads, window, size = k_window.shape
    queries, rows = q.shape[2], q.shape[1] // heads * q.shape[2]
    block = min(64, max(16, triton.next_power_of_2(rows)))
    blocks = triton.cdiv(rows, block)
    tile = TOKENS[q.element_size()]
    tiles = max(1, triton.cdiv(packed, tile))
    share = triton.cdiv(tiles, min(MOST_SPLITS, tiles, max(1, PROGRAMS // (batch * heads * blocks))))
    splits, dim = triton.cdiv(tiles, share), max(16, triton.next_power_of_2(size))
    found = torch.empty(batch * heads, splits, rows, size, dtype=torch.float32, device=q.device)
    peaks, totals = torch.empty(2, batch * heads, splits, rows, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    attend_split[batch * heads, blocks, splits](
        q.contiguous(), _elements(k_codes, k_bits), k_scales, k_lows, _elements(v_codes, v_bits), v_scales, v_lows,
        k_window, v_window, k_window if mask is None else mask.contiguous().view(torch.uint8), peaks, totals, found,
        scale, queries, rows, heads, packed, window, k_codes.shape[2], k_scales.shape[2], v_codes.shape[2],
        share * tile, K_BITS=k_bits, V_BITS=v_bits, GROUP=group, HAS_MASK=mask is not None, SIZE=size, DIM=dim,
        TILE=tile, BLOCK=block, num_warps=4, num_stages=2, **FUSED,
    )  # fmt: skip
    most = triton.next_power_of_2(splits)
    together = MOST_SPLITS // most
    join_splits[batch * heads, triton.cdiv(rows, together)](
        peaks, totals, found, out, rows, splits, SIZE=size, DIM=dim, MOST=most, BLOCK=together, **FUSED
    )
    return out


def _elements(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes as the elements of eight codes that a kernel loads."""
    return codes.view(torch.int32 if bits == 4 else torch.int16) if bits < 8 else codes
