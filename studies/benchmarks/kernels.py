"""How fast are linear layers and attention on packed codes, on one CPU thread? Against bfloat16 and ATen's own ones.

    python studies/benchmarks/kernels.py                    everything, about four minutes
    python studies/benchmarks/kernels.py decode --seconds 20
    python studies/benchmarks/kernels.py --core 1           pinned to another core

Every method of a case runs in turn, in one process pinned to one core. A time is the 25th percentile of the thread's
own time, so that neighbours are not counted: on an idle machine that is the latency. GB/s counts codes, scales and
zeros; beside it, what reading as many bytes takes. Results are compared with those of the dequantized matrices first.
Prints what we ask of ourselves as PASS or FAIL; exits with an error if something fails, or if the slow reference ran.
"""

import argparse
import os
import platform
import sys
import time
from datetime import date
from functools import partial

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

import moopt_kernels as mk

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP = 64
SMOLLM2 = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
LAYERS = 30
BF16 = ("F.linear", "prepacked", "mv", "SDPA", "SDPA, tokens first")


def plain(weight):
    """Products with a bfloat16 matrix, by the name of the method."""
    wide = weight.bfloat16()
    yield "F.linear", lambda x: linear(x, wide)
    reordered = torch.ops.mkldnn._reorder_linear_weight(wide)
    yield "prepacked", lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")
    yield "mv", lambda x: torch.mv(wide, x[0])


def atens(weight):
    """ATen's low-bit products and the eager way, by the name of the method."""
    n, k = weight.shape
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scales = torch.rand(n).bfloat16()
    yield "ATen int8", lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, scales)
    four = torch.randint(0, 16, (n, k), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(four, 1)
    parameters = torch.rand(k // GROUP, n, 2).bfloat16()
    yield "ATen int4", lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, parameters)
    grouped, scale = (four.to(torch.uint8).view(n, -1, GROUP), torch.rand(n, k // GROUP, 1).bfloat16())
    yield "eager", lambda x: linear(x, ((grouped.bfloat16() - 8) * scale).view(n, k))


def ours(weight, widths=WIDTHS):
    """Our products, by the name of the method, and what each has to read."""
    for bits in widths:
        packed = mk.quantize_weight(weight, bits, GROUP)
        yield f"{bits} bits", partial(mk.quantized_linear, weight=packed), packed.nbytes
    parent = mk.quantize_weight(weight, 8, GROUP)
    yield "8 -> 4 bits", partial(mk.sliced_linear, parent=parent, bits=4), parent.nbytes


def verify(x, weight):
    """Stop if a product of ours is not that of the matrix its codes stand for, before its time says anything."""
    for bits in WIDTHS:
        packed = mk.quantize_weight(weight, bits, GROUP)
        agree(f"{bits} bits", mk.quantized_linear(x, packed), linear(x.float(), mk.dequantize(packed)))
    parent = mk.quantize_weight(weight, 8, GROUP)
    sliced = linear(x.float(), mk.dequantize(mk.slice_repack(parent, 4)))
    agree("8 -> 4 bits", mk.sliced_linear(x, parent, 4), sliced)


def agree(name, found, expected):
    """Stop if a result is further from the expected one than bfloat16 explains."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not error < 0.02:
        sys.exit(f"{name}: the result is off by {error:.1%}; its time says nothing.")


def race(methods, seconds):
    """The 25th percentile of each method's times, in microseconds; the methods take turns."""
    times = {name: [] for name in methods}
    for run in methods.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, run in methods.items():
            run()  # its own caches, not those the one before it left
            start = time.thread_time_ns()
            run()
            times[name].append(1e-3 * (time.thread_time_ns() - start))
    return {name: sorted(found)[len(found) // 4] for name, found in times.items()}


def reading(nbytes):
    """A function that reads so many bytes once."""
    values = torch.zeros(nbytes // 4)
    return lambda: torch.dot(values, values)


def show(title, times, nbytes, reads):
    """A table of one case; returns the best bfloat16 time."""
    best = min(times[name] for name in BF16 if name in times)
    print(f"\n{title}\n{'':18}{'us':>10}{'x best bf16':>14}{'GB/s':>8}{'of reading':>12}")
    for name, found in times.items():
        line = f"{name:18}{found:10.1f}{best / found:14.2f}"
        if name in nbytes:
            line += f"{nbytes[name] / found / 1e3:8.1f}{100 * reads[name] / found:11.0f}%"
        print(line)
    return best


def decode(seconds):
    """One token, square matrices."""
    for n in (1536, 4096):
        weight, x = torch.randn(n, n) / n**0.5, torch.randn(1, n).bfloat16()
        verify(x, weight)
        nbytes = {name: size for name, _, size in ours(weight)}
        methods = {name: partial(run, x) for name, run in [*plain(weight), *atens(weight)]}
        methods |= {name: partial(run, x) for name, run, _ in ours(weight)}
        methods |= {f"read {name}": reading(size) for name, size in nbytes.items()}
        times = race(methods, seconds)
        reads = {name: times.pop(f"read {name}") for name in nbytes}
        best = show(f"M=1, {n} x {n}", times, nbytes, reads)
        for bits in (2, 3, 4):
            yield f"{n} square, {bits} bits: times the best bf16", best / times[f"{bits} bits"], ">=", 4.0
            yield f"{n} square, {bits} bits: times ATen's int4", times["ATen int4"] / times[f"{bits} bits"], ">=", 2.0
        yield f"{n} square, 8 bits: times the best bf16", best / times["8 bits"], ">=", 2.3
        for bits in (4, 5, 6, 8):
            share = reads[f"{bits} bits"] / times[f"{bits} bits"]
            yield f"{n} square, {bits} bits: share of the read bandwidth", share, ">=", 0.75


def prefill(seconds):
    """Many tokens, square matrices."""
    for n, m in ((1536, 256), (4096, 256), (4096, 512)):
        weight, x = torch.randn(n, n) / n**0.5, torch.randn(m, n).bfloat16()
        verify(x, weight)
        methods = {name: partial(run, x) for name, run in plain(weight) if name != "mv"}
        methods |= {name: partial(run, x) for name, run, _ in ours(weight)}
        times = race(methods, seconds)
        show(f"M={m}, {n} x {n}", times, {}, {})
        for bits in WIDTHS:
            name = f"{n} square, M={m}, {bits} bits: times F.linear"
            yield name, times["F.linear"] / times[f"{bits} bits"], ">=", 0.9


def model(seconds):
    """All 210 linear layers of smollm2-135m, one after the other, each with weights of its own."""
    shapes = SMOLLM2 * LAYERS
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in shapes]
    for m in (1, 512):
        fresh = {k: torch.randn(m, k).bfloat16() for _, k in shapes}  # in a model the layer before has just written it
        inputs = [fresh[k] for _, k in shapes]
        layers = {}
        for weight in weights:
            found = [(n, r) for n, r in plain(weight) if m == 1 or n != "mv"]
            found += [(n, r) for n, r in atens(weight) if m == 1 and n == "ATen int4"]
            for name, run in [*found, *((n, r) for n, r, _ in ours(weight, (2, 4, 8)))]:
                layers.setdefault(name, []).append(run)
        methods = {name: partial(whole, runs, inputs) for name, runs in layers.items()}
        times = race(methods, seconds)
        best = show(f"All linears of smollm2-135m, M={m}", times, {}, {})
        if m == 1:
            yield "smollm2-135m, M=1, 4 bits: times the best bf16", best / times["4 bits"], ">=", 3.8
            yield "smollm2-135m, M=1, 4 bits: times F.linear", times["F.linear"] / times["4 bits"], ">=", 5.0
        else:
            yield "smollm2-135m, M=512, 4 bits: times F.linear", times["F.linear"] / times["4 bits"], ">=", 1.3


def whole(runs, inputs):
    for run, x in zip(runs, inputs, strict=True):
        run(x)


def widths(seconds):
    """Changing the width of every linear layer of smollm2-135m."""
    weights = [torch.randn(shape) for shape in SMOLLM2 * LAYERS]
    parents = [mk.quantize_weight(weight, 8, GROUP) for weight in weights]
    current = list(parents)

    def change(make, sources):
        for i, source in enumerate(sources):
            current[i] = make(source)

    methods = {f"repack to {b}": partial(change, partial(mk.slice_repack, bits=b), parents) for b in (2, 3, 4, 5, 6)}
    methods["quantize to 4"] = partial(change, partial(mk.quantize_weight, bits=4, group_size=GROUP), weights)
    times = race(methods, seconds)
    scale = 1e8 / sum(weight.numel() for weight in weights) / 1e3
    print(f"\nEach 100M parameters{'ms':>10}")
    for name, found in times.items():
        print(f"{name:20}{found * scale:10.1f}")
        if name.startswith("repack"):
            yield f"{name} bits, ms each 100M parameters", found * scale, "<=", 25.0


def attention(seconds):
    """One new token of smollm2-135m: nine heads of 64 share three heads of keys and values."""
    for tokens, bound in ((512, None), (2048, 1.2), (8192, 2.0)):
        keys, values = torch.randn(2, 1, 3, tokens, 64).bfloat16()
        q = torch.randn(1, 9, 1, 64).bfloat16()
        tokens_first = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (keys, values)]
        methods = {
            "SDPA": partial(scaled_dot_product_attention, q, keys, values, enable_gqa=True),
            "SDPA, tokens first": partial(scaled_dot_product_attention, q, *tokens_first, enable_gqa=True),
        }
        nbytes = {}
        for k_bits, v_bits in ((8, 8), (4, 4), (2, 2)):
            cache = mk.kv_cache(keys, k_bits, v_bits)
            mk.kv_append(cache, keys, values)
            name = f"K{k_bits}V{v_bits}"
            methods[name] = partial(mk.quantized_kv_attention, q, cache)
            if k_bits == 8:  # with fewer bits it is another attention, which the tests compare with the reference
                agree(name, methods[name](), methods["SDPA"]())
            stores = (cache.keys, cache.values)
            nbytes[name] = sum(part.nbytes for store in stores for part in (store.codes, store.scales, store.lows))
        methods |= {f"read {name}": reading(size) for name, size in nbytes.items()}
        times = race(methods, seconds)
        reads = {name: times.pop(f"read {name}") for name in nbytes}
        best = show(f"Attention of one token to {tokens}", times, nbytes, reads)
        if bound:
            yield f"attention to {tokens} tokens, K4V4: times the best bf16", best / times["K4V4"], ">=", bound


SUITES = {"decode": decode, "prefill": prefill, "model": model, "widths": widths, "attention": attention}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case")
    allowed = sorted(os.sched_getaffinity(0))
    parser.add_argument("--core", type=int, default=allowed[0], choices=allowed, help="which core it is pinned to")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {asked.core})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = mk.choose_layout("cpu")
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, {layout}"
    )
    found = [check for suite in asked.suites or SUITES for check in SUITES[suite](asked.seconds)]
    print()
    for text, value, sign, bound in found:
        held = value >= bound if sign == ">=" else value <= bound
        print(f"{'PASS' if held else 'FAIL'}  {text}: {value:.2f} ({sign} {bound})")
    ran = mk.calls()
    print(
        "\nWhat ran: " + ", ".join(f"{op} on {implementation}, {times}" for (op, implementation), times in ran.items())
    )
    if any(implementation == "reference" for _, implementation in ran):
        sys.exit("The slow reference ran: these figures say nothing about the kernels.")
    sys.exit(0 if all(v >= b if s == ">=" else v <= b for _, v, s, b in found) else 1)


if __name__ == "__main__":
    main()
