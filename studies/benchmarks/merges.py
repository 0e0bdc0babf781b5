"""How long a merge takes from folders to a folder, beside mergekit's, for every method and in the same run.

    make test-clients                                             # once: it installs mergekit
    .venv-clients/bin/python studies/benchmarks/merges.py

Four Llamas of SmolLM2's shapes with eight blocks and random weights, 57 million in bfloat16, on one thread; the better
two runs each, in turns. Ours, too, reads and writes files here; a search keeps the merge in memory, which is the last
column. Without mergekit it says so and measures nothing. Exits with an error if something falls short.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models

from moopt.backend.exporters.mergekit import configuration
from moopt.backend.merging import METHODS, Merger, Recipe

DENSITY, WEIGHTS = 0.5, {"a": 0.5, "b": 0.3, "c": 0.4}
RUNS = 2


def made(folder):
    """The folders of a base and three models that were tuned from it at random, by name."""
    config = transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")))
    places = {name: str(folder / name) for name in ("base", *WEIGHTS)}
    for name, place in places.items():
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.002 * torch.randn_like(parameter))
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return places


def theirs(recipe, places, base, out):
    """Merge by mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    asked = configuration(recipe, places, base) | {"out_dtype": "bfloat16"}
    run_merge(MergeConfiguration.model_validate(asked), str(out), MergeOptions(quiet=True))


def ours(recipe, places, base, out):
    """Merge by moopt, from files to files."""
    Merger(places, base).save(out, recipe)


def seconds(work, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        work(*arguments, Path(folder) / "merged")
        return time.perf_counter() - began


def in_memory(recipe, places, base):
    """Seconds of a merge into a model that is loaded already, as a search makes it."""
    merger = Merger(places, base)
    model = transformers.AutoModelForCausalLM.from_pretrained(next(iter(places.values())), dtype=torch.bfloat16)
    merger.fill(model, recipe)
    began = time.perf_counter()
    merger.fill(model, recipe)
    return time.perf_counter() - began


def main():
    try:
        import mergekit  # noqa: F401
    except ModuleNotFoundError:
        print("SKIPPED: mergekit is not installed here; make test-clients installs it, see this script's first lines")
        return
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp())
    try:
        places, failed = made(folder), False
        print(f"{'':20}{'mergekit s':>12}{'moopt s':>10}{'ratio':>8}{'in memory s':>13}")
        for method, how in METHODS.items():
            members = dict(list(WEIGHTS.items())[: how.models])
            recipe = Recipe.of(method, members, dict.fromkeys(members, DENSITY))
            merge = recipe, {name: places[name] for name in members}, places["base"] if how.from_base else None
            both = [[seconds(each, *merge) for each in (theirs, ours)] for _ in range(RUNS)]
            their, our = map(min, zip(*both, strict=True))
            failed |= our > their
            print(
                f"{'FAIL' if our > their else 'PASS'} {method:15}{their:12.2f}{our:10.2f}{their / our:8.2f}"
                f"{in_memory(*merge):13.2f}",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
