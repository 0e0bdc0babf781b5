"""Compiles for sm_90, without a GPU, what the kernels' callers would launch; prints what each kernel takes, as JSON.

Triton's launcher is replaced by a call of its compiler, so that signatures and constants are those of production. Run
as a program of its own, with TRITON_INTERPRET=0: one process either interprets or compiles.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moopt_kernels import Prepacked, kv_append, kv_cache
from moopt_kernels.attention import triton as attention
from moopt_kernels.gpu.matrix import Matrix
from moopt_kernels.linear import triton as linear
from moopt_kernels.quantize import triton as quantize

TARGET = GPUTarget("cuda", 90, 32)

USAGE = re.compile(r"REG:(\d+) STACK:(\d+).*? LOCAL:(\d+)")


def compiled(kernel: Any, *args: Any, grid: Any, warmup: bool, num_warps: int = 4, num_stages: int = 3, **named: Any) -> dict[str, Any]:  # fmt: skip  # noqa: E501
    """What `kernel[grid](*args, **named)` would run, compiled."""
    fused = named.pop("enable_fp_fusion")
    bound = kernel.signature.bind(*args, **named).arguments
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, bound[parameter.name]
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = triton.runtime.jit.mangle_type(value)
        if not isinstance(value, float) and (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": fused}
    found = triton.compile(source, target=TARGET, options=options)
    return {"kernel": kernel.__name__, "shared": found.metadata.shared} | usage(found.asm["cubin"])


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of local memory, by the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(int, USAGE.search(text).groups())  # type: ignore[union-attr]
    return {"registers": registers, "stack": stack, "local": local}


def weight(bits: int, keep: int, k: int = 4096, group: int = 64) -> Matrix:
    """Room for a matrix, 4096 x k."""
    shape, groups = (4096, k), k // group
    parts = (torch.empty(4096 * k * bits // 8, dtype=torch.uint8), torch.empty(4096, groups, dtype=torch.bfloat16))
    return Matrix(*parts, torch.empty(4096, groups, dtype=torch.uint8), shape, group, bits, keep, bits - keep)


def linears() -> None:
    """Every configuration at 8 bits, which take most, and other widths and a slice at the one that is tried first."""
    for m, dtype in ((1, torch.bfloat16), (16, torch.bfloat16), (512, torch.bfloat16), (64, torch.float32)):
        configs = [config for config in linear.candidates(m, dtype)[1] if config.splits == 1]
        x = torch.empty(m, 4096, dtype=dtype)
        for config in configs:
            linear.run(weight(8, 8), x, None, config)
        if m <= 16:
            for matrix in (weight(3, 3), weight(7, 7), weight(8, 4)):
                linear.run(matrix, x, None, configs[0])


def weights() -> None:
    """What turns codes into weights, weights into codes, and codes into fewer bits."""
    for group in (32, 128):
        quantize.dense(weight(8, 8, group=group), torch.bfloat16)
        quantize.quantize_weight(torch.empty(4096, 4096, dtype=torch.bfloat16), 8, group, symmetric=False)
    parent = weight(8, 8)
    parts = (parent.codes, parent.scales, parent.zeros)
    quantize.slice_repack(Prepacked(*parts, 8, parent.group_size, parent.shape, "triton"), 7)


def attentions() -> None:
    """Decoding and a chunk of a prefill, keys per channel and per token, heads of 64 and 128."""
    for k_bits, v_bits, group, queries, size, dtype in (
        (4, 4, 32, 1, 128, torch.bfloat16),
        (8, 2, 0, 256, 128, torch.bfloat16),
        (4, 4, 32, 1, 64, torch.float32),
    ):
        tokens = torch.empty(1, 8, 4096, size, dtype=dtype)
        cache = kv_cache(tokens, k_bits, v_bits, group or None)
        kv_append(cache, tokens, tokens)
        k, v = cache.keys, cache.values
        attention.kv_attention(
            torch.empty(1, 32, queries, size, dtype=dtype), k.codes, k.scales, k.lows, v.codes, v.scales, v.lows,
            cache.key_window, cache.value_window, None, size**-0.5, cache.packed, k_bits, v_bits, group,
        )  # fmt: skip


def main() -> None:
    """Compile everything, and print one line a kernel."""

    def launch(kernel: Any, *args: Any, **named: Any) -> None:
        print(json.dumps(compiled(kernel, *args, **named)), flush=True)

    triton.runtime.jit.JITFunction.run = launch
    linears()
    weights()
    attentions()


if __name__ == "__main__":
    main()
