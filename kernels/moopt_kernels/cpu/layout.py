"""The CPU layout: superblocks of 16 outputs x 32 inputs for the C++ kernels (`kernels.h`). Importing readies them."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from moopt_kernels import dispatch
from moopt_kernels.cpu import build, fakes
from moopt_kernels.cpu.fakes import ROWS
from moopt_kernels.layout import Parts, Prepacked

VERSION = 2
"""To be raised when matrices lie in memory in another way: what is stored of them is then made again."""
OPERATIONS = (
    "quantized_linear", "sliced_linear", "quantize_weight", "slice_repack", "dequantize", "quantized_kv_attention",
)  # fmt: skip
"""What the library counts, in its order."""

_library = build.load()
_library.moopt_limit.restype = ctypes.c_char_p
fakes.register()


def arrange(codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group_size: int) -> Parts:
    """Codes [n, k], scales and zeros [n, groups] as this layout holds them."""
    packed = torch.ops.moopt.cpu_pack(codes, bits, group_size)
    return packed, _in_blocks(scales), None if zeros is None else _in_blocks(zeros)


def restore(parts: Parts, bits: int, group_size: int, shape: tuple[int, int]) -> Parts:
    """What was arranged, exactly."""
    codes, scales, zeros = parts
    plain = torch.ops.moopt.cpu_unpack(codes, *shape, bits, group_size)
    return plain, _in_rows(scales, shape[0]), None if zeros is None else _in_rows(zeros, shape[0])


def unstream(codes: Tensor, k: int, bits: int) -> Tensor:
    """The codes [n, k] of rows that are packed as in the file."""
    found: Tensor = torch.ops.moopt.cpu_unstream(codes, k, bits)
    return found


def view_rows(weight: Prepacked, start: int, stop: int) -> Prepacked | None:
    """Consecutive rows in the same memory, where they begin and end with a block."""
    if start % ROWS or (stop % ROWS and stop != weight.shape[0]):
        return None
    first, last, size = start // ROWS, -(-stop // ROWS), _block_bytes(weight)
    zeros = None if weight.zeros is None else weight.zeros[first:last]
    codes = weight.codes[first * size : last * size]
    return replace(
        weight, codes=codes, scales=weight.scales[first:last], zeros=zeros, shape=(stop - start, weight.shape[1])
    )


def dequantize_rows(weight: Prepacked, rows: Tensor, dtype: torch.dtype, bits: int | None) -> Tensor:
    """Rows [m] of the matrix, or of the slice of an 8-bit parent, as [m, k]; IndexError where there is no such row."""
    parts = (weight.codes, weight.scales, weight.zeros, rows)
    shift, kept = (weight.shift, 8) if bits is None else (0, bits)
    numbers = (*weight.shape, weight.bits, weight.group_size, shift, kept)
    found: Tensor = torch.ops.moopt.cpu_dequantize_rows(*parts, *numbers, dtype)
    return found


def quantize_weight(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Prepacked:
    """Round to nearest and pack, in one pass."""
    if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        weight = weight.float()
    codes, scales, zeros = torch.ops.moopt.cpu_quantize(weight, bits, group_size, symmetric)
    shape = (weight.shape[0], weight.shape[1])
    return Prepacked(codes, scales, None if symmetric else zeros, bits, group_size, shape, "cpu")


def slice_repack(parent: Prepacked, bits: int) -> Prepacked:
    """The slice of an 8-bit parent; scales and zeros are the parent's own tensors."""
    codes = torch.ops.moopt.cpu_repack(parent.codes, *parent.shape, parent.group_size, bits)
    scales, zeros = parent.scales, parent.zeros
    return Prepacked(codes, scales, zeros, bits, parent.group_size, parent.shape, "cpu", shift=8 - bits)


def dequantize(weight: Prepacked, dtype: torch.dtype) -> Tensor:
    """The matrix [n, k]."""
    parts = (weight.codes, weight.scales, weight.zeros)
    numbers = (*weight.shape, weight.bits, weight.group_size, weight.shift)
    found: Tensor = torch.ops.moopt.cpu_dequantize(*parts, *numbers, dtype)
    return found


def limit(most: str) -> str:
    """Use no more than "avx2" or "avx512", or all that the CPU has: ""; returns what is used. For comparisons.

    Raises:
        KernelError: the path for AVX2 beside better ones cannot be compiled here.
    """
    used: bytes = _library.moopt_limit(most.encode())
    if not used:
        _lend_avx2()
        used = _library.moopt_limit(most.encode())
    return used.decode()


def _lend_avx2() -> None:
    lender = build.load_avx2()
    lender.moopt_few_avx2.restype = lender.moopt_attention_avx2.restype = ctypes.c_void_p
    few, attention = lender.moopt_few_avx2(), lender.moopt_attention_avx2()
    _library.moopt_lend(ctypes.c_void_p(few), ctypes.c_void_p(attention))


def _drain() -> dict[tuple[str, str], int]:
    counts = (ctypes.c_int64 * len(OPERATIONS))()
    _library.moopt_take_calls(counts)
    return {(name, "cpu"): count for name, count in zip(OPERATIONS, counts, strict=True) if count}


def _block_bytes(weight: Prepacked) -> int:
    return len(weight.codes) // -(-weight.shape[0] // ROWS)


def _in_blocks(values: Tensor) -> Tensor:
    """[n, groups] as [ceil(n / 16), groups, 16]."""
    n, groups = values.shape
    blocks = -(-n // ROWS)
    padded = torch.nn.functional.pad(values, (0, 0, 0, blocks * ROWS - n))
    return padded.view(blocks, ROWS, groups).transpose(1, 2).contiguous()


def _in_rows(values: Tensor, n: int) -> Tensor:
    return values.transpose(1, 2).reshape(-1, values.shape[1])[:n].contiguous()


limit("")
dispatch.drains.append(_drain)
