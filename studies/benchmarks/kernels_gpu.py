"""The Triton kernels on a GPU beside cuBLAS in bfloat16, GemLite (if installed) and PyTorch's attention.

    python studies/benchmarks/kernels_gpu.py

Every call is captured in a CUDA graph over so many copies of its data that none is found in the L2 cache; prints the
median of the replays. Aims are those of an H200. Exits with an error if one is missed there, or a reference ran.
Without a GPU nothing is measured.
"""

import importlib.util
import platform
import statistics
import sys
from datetime import date
from importlib.metadata import version

import torch

from moopt_kernels import calls, kv_append, kv_cache, prepack, quantized_kv_attention, quantized_linear, sliced_linear

COLD = 256 * 2**20
"""Bytes that a round of copies takes at least: several times an H200's L2."""

REPLAYS = 30
GROUP = 64
SHAPES = [(m, 8192, 8192) for m in (1, 2, 8, 32, 64, 128, 512, 1024)] + [(1, 4096, 4096), (1, 1536, 1536)]
WIDTHS = (2, 3, 4, 6, 8)


def seconds(calls_, nbytes):
    """Median seconds of one call; `calls_(i)` makes call `i`, on a copy of its own that it reads `nbytes` of."""
    copies = max(2, -(-COLD // nbytes))
    runs = [calls_(i) for i in range(copies)]
    for run in runs:
        run()  # compiles, and chooses its configuration
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return statistics.median(times)


def matrix(n, k, bits):
    """A random quantized matrix on the GPU."""
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(n, k // GROUP, device="cuda").bfloat16()
    return prepack(codes, scales, torch.randint_like(scales, 2**bits, dtype=torch.uint8), bits, GROUP)


def cublas(m, n, k):
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)

    def call(_):
        weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        return lambda: torch.nn.functional.linear(x, weight)

    return seconds(call, 2 * n * k)


def ours(m, n, k, bits, keep=None):
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    first = matrix(n, k, bits)
    copies = {}

    def call(i):
        copies[i] = weight = first if i == 0 else matrix(n, k, bits)
        return lambda: quantized_linear(x, weight) if keep is None else sliced_linear(x, weight, keep)

    return seconds(call, first.nbytes), first.nbytes


def gemlite(m, n, k, bits):
    """Seconds of GemLite's kernel, nan where it has none."""
    if importlib.util.find_spec("gemlite") is None or bits not in (2, 4, 8):
        return float("nan")
    from gemlite.core import DType, GemLiteLinear

    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)

    def call(_):
        layer = GemLiteLinear(
            W_nbits=bits,
            group_size=GROUP,
            in_features=k,
            out_features=n,
            input_dtype=DType.BF16,
            output_dtype=DType.BF16,
        )
        codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device="cuda")
        scales = torch.rand(n, k // GROUP, device="cuda").bfloat16()
        layer.pack(codes, scales, torch.full_like(scales, 2 ** (bits - 1)), None)
        return lambda: layer(x)

    return seconds(call, n * k * bits // 8)


def attention(tokens, k_bits, v_bits):
    """Seconds of decoding one token, 32 heads that share 8 of 128: ours, and PyTorch's fastest in bfloat16."""
    q = torch.randn(1, 32, 1, 128, device="cuda", dtype=torch.bfloat16)

    def packed(_):
        keys, values = torch.randn(2, 1, 8, tokens, 128, device="cuda", dtype=torch.bfloat16)
        cache = kv_cache(keys, k_bits, v_bits)
        kv_append(cache, keys, values)
        return lambda: quantized_kv_attention(q, cache)

    def plain(_):
        keys, values = torch.randn(2, 1, 8, tokens, 128, device="cuda", dtype=torch.bfloat16)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    nbytes = 8 * tokens * 128 * (k_bits + v_bits) // 8
    return seconds(packed, nbytes), seconds(plain, 8 * tokens * 128 * 4)


def linears():
    """Print a table; returns what the aims ask for."""
    found = {}
    print(f"\n{'M':>5} {'K':>5} {'N':>5} {'bits':>8} {'us':>9} {'GB/s':>6} {'x cuBLAS':>9} {'x GemLite':>10}")
    for m, k, n in SHAPES:
        base = cublas(m, n, k)
        print(f"{m:5} {k:5} {n:5} {'bf16':>8} {base * 1e6:9.1f} {2 * n * k / base / 1e9:6.0f} {1:9.2f}")
        for bits, keep in [*((bits, None) for bits in WIDTHS), (8, 4)]:
            took, nbytes = ours(m, n, k, bits, keep)
            theirs = float("nan") if keep else gemlite(m, n, k, bits)
            name = f"{bits}" if keep is None else f"{keep} of {bits}"
            rate, ratio = nbytes / took / 1e9, base / took
            print(f"{m:5} {k:5} {n:5} {name:>8} {took * 1e6:9.1f} {rate:6.0f} {ratio:9.2f} {theirs / took:10.2f}")
            found[m, n, name] = rate, ratio
    return found


def main():
    print(f"{date.today()}, torch {version('torch')}, {platform.processor() or platform.machine()}")
    if not torch.cuda.is_available():
        print("not measured: no GPU here")
        return
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, triton {version('triton')}, group {GROUP}, CUDA graphs, cold L2, median of {REPLAYS}")
    found = linears()
    print(f"\n{'tokens':>7} {'K/V bits':>9} {'us':>9} {'bf16 us':>9} {'ratio':>6}")
    ratios = {}
    for tokens in (2048, 8192, 32768):
        for k_bits, v_bits in ((8, 8), (4, 4), (4, 2), (2, 2)):
            packed, plain = attention(tokens, k_bits, v_bits)
            ratios[tokens, k_bits, v_bits] = plain / packed
            pair = f"{k_bits}/{v_bits}"
            print(f"{tokens:7} {pair:>9} {packed * 1e6:9.1f} {plain * 1e6:9.1f} {plain / packed:6.2f}")
    aims = [
        ("4-bit GEMV, 8192 square, GB/s", found[1, 8192, "4"][0], 2200),
        ("4-bit GEMV, 8192 square, x cuBLAS", found[1, 8192, "4"][1], 2),
        ("8-bit GEMV, 8192 square, GB/s", found[1, 8192, "8"][0], 3000),
        ("M >= 512, lowest x cuBLAS", min(r for (m, _, _), (_, r) in found.items() if m >= 512), 0.9),
        ("KV4 at 32k tokens, x PyTorch's attention", ratios[32768, 4, 4], 2),
    ]
    print()
    held = True
    for text, value, aim in aims:
        verdict = ("PASS" if value >= aim else "FAIL") if "H200" in gpu else "no H200"
        held = held and verdict != "FAIL"
        print(f"{verdict:8} {text}: {value:.2f} (>= {aim})")
    if slow := [name for name in calls() if name[1] == "reference"]:
        sys.exit(f"The slow reference ran: {slow}")
    if not held:
        sys.exit("An aim was missed.")


if __name__ == "__main__":
    main()
