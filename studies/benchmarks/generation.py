"""Generating text with packed models beside transformers in bfloat16: speed, agreement, load time, size of a front.

    python studies/benchmarks/generation.py

One pinned thread, batch 1, the two models in turn. Times are the processor's, in which neighbours on the machine do not
count; those by the clock stand beside them. Texts are compared in float32, where only the widths differ: in bfloat16
the original soon parts from itself, as is printed beside it. Prints a verdict for each aim; exits with an error where
one is missed, or where the slow reference of a kernel ran.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from transformers import AutoTokenizer

import moopt
from moopt.backend import models
from moopt_kernels import calls, reset_calls
from moopt_problems import BitAllocation

MODEL, TOKENS, ROUNDS, COMPARED = "smollm2-135m", 128, 3, 64
PROMPTS = (
    "The history of the Roman empire began", "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):\n", "My favourite recipe for tomato soup is", "The three laws of motion are",
    "Once upon a time, in a small village,", "To sort a list in Python,", "The capital of France is",
    "Photosynthesis is the process by which", "Dear Sir or Madam,\n", "In machine learning, overfitting means",
    "A good night's sleep is important because", "The difference between a virus and a bacterium is",
    "How do I change a bicycle tyre?\n", "The main causes of the First World War were",
    "for i in range(10):\n    print(", "The moon orbits the earth", "An economy grows when",
    "Chess is a game of", "The speed of light is",
)  # fmt: skip


def seconds(work):
    """The processor's and the wall's time for a call: the same on an idle machine, where loading reads no disk."""
    began, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began, time.perf_counter() - wall


def medians(times):
    """The medians of CPU seconds and of wall seconds."""
    return tuple(statistics.median(column) for column in zip(*times, strict=True))


def generate(model, ids, tokens):
    """Greedy text of so many tokens, [tokens]."""
    return model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]


def common(a, b):
    """How many tokens two texts share from their beginning."""
    return int((a == b).cumprod(0).sum())


def verdict(what, value, aim, good):
    """Print one aim and whether it is met."""
    print(f"{'PASS' if good else 'FAIL'}  {what}: {value} (aim {aim})", flush=True)
    return good


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    met = []
    with tempfile.TemporaryDirectory() as folder:
        problem = BitAllocation(MODEL, sensitivities=None, held_out=0, validation=0)
        uniform = problem.baselines()
        paths = {b: problem.save(uniform[f"uniform-{b}"], Path(folder) / f"{b}.safetensors") for b in (4, 8)}
        maps = {name: uniform[name] for name in ("uniform-2", "uniform-3", "uniform-4", "uniform-6", "uniform-8")}
        front = problem.save_slices(maps, Path(folder) / "front.safetensors")
        share = front.stat().st_size / paths[8].stat().st_size
        tokenizer = AutoTokenizer.from_pretrained(folder)
        original = models.load_model(MODEL).to(torch.bfloat16)
        loading, loading_wall = medians(seconds(lambda: moopt.load(paths[4], device="cpu")) for _ in range(ROUNDS))
        four = moopt.load(paths[4], device="cpu")
        eights = {t: moopt.load(paths[8], device="cpu", dtype=t) for t in (torch.float32, torch.bfloat16)}
    print(f"{date.today()}, {platform.machine()}, 1 pinned thread, torch {torch.__version__}, {MODEL}, bfloat16")
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in PROMPTS]
    generate(four, prompts[0], 8), generate(original, prompts[0], 8)  # warm up
    reset_calls()
    generate(four, prompts[0], TOKENS)
    ran = calls()
    fused = sum(count for (name, where), count in ran.items() if name == "quantized_linear" and where != "reference")
    print(f"calls of a generation: {ran}")
    pairs = [
        (seconds(lambda: generate(four, prompts[0], TOKENS)), seconds(lambda: generate(original, prompts[0], TOKENS)))
        for _ in range(ROUNDS)
    ]
    (four_cpu, four_wall), (wide_cpu, wide_wall) = (medians(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for (a, _), (b, _) in pairs)
    print(f"{TOKENS} tokens: 4 bits {four_cpu:.2f} s of the processor ({four_wall:.2f} s by the clock), ", end="")
    print(f"bfloat16 {wide_cpu:.2f} s ({wide_wall:.2f} s)")
    print(f"\ntokens shared with the original in float32, of {COMPARED}: the median, and each prompt's")
    exact = models.load_model(MODEL).to(torch.float32)
    texts = [generate(exact, p, COMPARED) for p in prompts]
    shared = {}
    for name, model in (("8 bits", eights[torch.float32]), ("8 bits in bfloat16", eights[torch.bfloat16]),
                        ("the original in bfloat16", original)):  # fmt: skip
        agreed = sorted(common(generate(model, p, COMPARED), text) for p, text in zip(prompts, texts, strict=True))
        shared[name] = statistics.median(agreed)
        print(f"{name:26}{shared[name]:5}  {agreed}")
    layers = original.config.num_hidden_layers
    met.append(verdict("speed-up of generating, processor's time", f"{ratio:.2f}x", "2x", ratio >= 2))
    met.append(verdict("tokens that 8 bits share, median", shared["8 bits"], 32, shared["8 bits"] >= 32))
    told = f"{loading:.2f} s of the processor ({loading_wall:.2f} s by the clock)"
    met.append(verdict("loading", told, "under 2 s", loading < 2))
    met.append(verdict("five slice maps beside the parent alone", f"{share:.4f}x", "under 1.02x", share < 1.02))
    met.append(verdict("kernel calls a token", fused / TOKENS, 4 * layers + 1, fused == TOKENS * (4 * layers + 1)))
    slow = sum(n for (_, w), n in ran.items() if w == "reference")
    met.append(verdict("calls of the reference", slow, 0, slow == 0))
    sys.exit(not all(met))
