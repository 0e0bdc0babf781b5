"""A model that does not fit: random weights in the shape of a 1B or 8B model, searched with one block in memory.

    python studies/benchmarks/streaming.py                    1B (TinyLlama's shape): streamed, under 4 GiB
    python studies/benchmarks/streaming.py --shape 8b         Llama-3-8B's shape: for a GPU of 24 GB or 32 GB of memory
    python studies/benchmarks/streaming.py --whole            the same with the model held whole, to compare
    python studies/benchmarks/streaming.py --last 2           quantize the last two blocks only: minutes, not an hour

Writes the model as sharded safetensors, a block at a time. A process of its own then calibrates and quantizes the
linear layers and measures one candidate's KL. What is printed as its peak is the kernel's VmHWM: every page the
process had in memory at once, pages that are only mapped from files counted; on a GPU, also what PyTorch held there.
Weights are random: the KL says nothing about the method. Exits with an error above 4 GiB (1b) or 24 GiB (8b).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "vocab_size": 32_000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
LIMITS = {"1b": 4.0, "8b": 24.0}


def write(folder, shape):
    """Random weights in bfloat16: a file for each block, and one for the rest."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from moopt.backend import models

    config = LlamaConfig(**shape, max_position_embeddings=2048, architectures=["LlamaForCausalLM"])
    sizes = {name: p.shape for name, p in models.outline(config).named_parameters()}
    files = {name: f"{name.split('.')[2] if '.layers.' in name else 'rest'}.safetensors" for name in sizes}
    generator = torch.Generator().manual_seed(0)

    def made(size):
        values = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator).mul_(size[1] ** -0.5)
        return values.bfloat16()

    for file in dict.fromkeys(files.values()):
        save_file({n: made(s) for n, s in sizes.items() if files[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def byte_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def search(asked):
    """Calibrate, quantize and measure; prints a line of JSON."""
    import torch

    import moopt
    from moopt_problems import BitAllocation

    began = time.perf_counter()
    problem = BitAllocation(
        str(asked.folder / "model"), bits=(asked.bits,), quantizer=asked.quantizer, stream=not asked.whole, tokens=2048,
        held_out=0, validation=0, calibration_tokens=2048, sensitivities=None, skip=skipped(asked),
    )  # fmt: skip
    problem.setup(moopt.Resources(device=asked.device))
    opened = time.perf_counter()
    config, said = problem.baselines()[f"uniform-{asked.bits}"], {"start_gib": status("VmHWM")}
    first = problem.evaluate(config, problem.fidelity)
    made = time.perf_counter()
    again = problem.evaluate(config, problem.fidelity)
    assert first.values == again.values
    said |= {
        "parameters": sum(w.count for w in problem.inventory.weights), "kl": first.values["kl"],
        "open_s": opened - began, "calibrate_quantize_measure_s": made - opened,
        "measure_again_s": time.perf_counter() - made, "peak_gib": status("VmHWM"),
    }  # fmt: skip
    if torch.cuda.is_available() and asked.device != "cpu":
        said["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(said))


def skipped(asked):
    """Patterns of the blocks that are not quantized."""
    blocks = asked.layers or SHAPES[asked.shape]["num_hidden_layers"]
    return [f"model.layers.{block}.*" for block in range(blocks - asked.last)] if asked.last else []


def status(entry):
    """A figure of this process in GiB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--layers", type=int, help="blocks, if not all of the shape's")
    parser.add_argument("--last", type=int, help="blocks to quantize, if not all: the last ones")
    parser.add_argument("--quantizer", default="gptq")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--folder", type=Path, help="where model and cache go and stay; a temporary one if not said")
    parser.add_argument("--search", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.search:
        return search(asked)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        shape = SHAPES[asked.shape] | ({"num_hidden_layers": asked.layers} if asked.layers else {})
        if not (folder / "model" / "config.json").exists():
            (folder / "model").mkdir(parents=True)
            write(folder / "model", shape)
        environment = os.environ | {"MOOPT_CACHE": str(folder / ("cache-whole" if asked.whole else "cache"))}
        command = [sys.executable, __file__, *sys.argv[1:], "--search", "--folder", str(folder)]
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    for name, value in found.items():
        print(f"{name:>30} {value:,.3f}" if isinstance(value, float) else f"{name:>30} {value:,}")
    peak = found.get("peak_gpu_gib", found["peak_gib"])
    good = peak < LIMITS[asked.shape]
    print(f"{'PASS' if good else 'FAIL'}  peak of {peak:.2f} GiB, asked: under {LIMITS[asked.shape]:g} GiB")
    sys.exit(0 if good or asked.whole else 1)


if __name__ == "__main__":
    main()
