"""compressed-tensors: what vLLM and transformers load, one group of modules for each width.

Codes are written as they are, in "pack-quantized": rows of codes as a stream of bits, the least significant first, in
words of 32 bits; zero points alike, but down the columns. Nothing is quantized again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moopt.backend.exporters.clients import Logits, Run, in_transformers
from moopt.backend.exporters.shipment import Shipment, coded, finished, raised, write_beside
from moopt.backend.exporters.words import words
from moopt.backend.options import bits_of, rank_of
from moopt.backend.quantizers import Quantized
from moopt.backend.shards import Shards
from moopt.backend.targets import TARGETS
from moopt.errors import ExportError
from moopt.exporting import Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.safetensors"
FORMAT = "pack-quantized"


class CompressedTensors(Run):
    """Safetensors with a group of modules for each width; embedding and head stay at 16 bits."""

    name = "compressed-tensors"
    everywhere = "vLLM loads, which takes fewer than transformers"
    about = "vLLM, and transformers with the package compressed-tensors"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = coded(problem, config, self.name)
        tensors, groups = found.rest(), dict[tuple[int, bool], list[str]]()
        tables = {weight.name for weight in found.layout.inventory.weights if weight.kind != "linear"}
        for name, option in found.widths.items():
            if rank_of(option):
                raise ExportError(f"{name} has a low-rank repair, {option}, which compressed-tensors cannot hold.")
            matrix = found.quantized(name, option)
            if name in tables:  # its values, which servers look up and multiply by as they are
                tensors[f"{found.named(name)}.weight"] = matrix.dequantize(torch.bfloat16)
                continue
            tensors |= _packed(found.named(name), matrix)
            groups.setdefault((bits_of(option), matrix.zeros is None), []).append(found.named(name))
        save_file(tensors, folder / FILE, {"format": "pt"})
        write_beside(folder, found, _described(found, groups))
        size = sum(tensor.nbytes for tensor in tensors.values())
        return finished(found, folder, size, ["vllm serve {path}"], _notes(found, groups, tables))

    def raised(self, problem: Problem, config: Config) -> Config:
        return raised(problem, config, self.name, lambda option: option in TARGETS["vllm"].bits, fused=True)

    def client(self, folder: Path, context: int) -> AbstractContextManager[Logits]:
        if importlib.util.find_spec("compressed_tensors") is None:
            raise ExportError("transformers reads this with another package; run: pip install compressed-tensors")
        if any(name.endswith(".weight_zero_point") for name in Shards([folder / FILE])):
            raise ExportError("It has zero points, which transformers does not load; nothing else is run from here.")
        return in_transformers(folder)


def _packed(name: str, matrix: Quantized) -> dict[str, Tensor]:
    """The tensors of one matrix."""
    if matrix.shift or type(matrix) is not Quantized:
        raise ExportError(
            f"{name} has codes that compressed-tensors lacks ({type(matrix).__name__}, shifted by {matrix.shift}). "
            "Search with a quantizer of plain codes: 'rtn', 'hqq' or 'gptq'."
        )
    found = {
        f"{name}.weight_packed": words(matrix.codes, matrix.bits),
        f"{name}.weight_scale": matrix.scales.contiguous(),
        f"{name}.weight_shape": torch.tensor(matrix.codes.shape),
    }
    if matrix.zeros is not None:
        if int(matrix.zeros.max()) >= 2**matrix.bits:
            raise ExportError(
                f"{name} has zero points above its {matrix.bits}-bit codes, which compressed-tensors lacks."
            )
        found[f"{name}.weight_zero_point"] = words(matrix.zeros.T, matrix.bits).T.contiguous()
    return found


def _described(found: Shipment, groups: Mapping[tuple[int, bool], list[str]]) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    every = {found.named(weight.name) for weight in found.layout.inventory.weights}
    quantized = {name for names in groups.values() for name in names}
    schemes = {
        f"group_{place}": {
            "format": FORMAT,
            "targets": names,
            "weights": {
                "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
                "group_size": found.layout.group_size, "dynamic": False, "actorder": None, "observer": "minmax",
            },
            "input_activations": None,
            "output_activations": None,
        }
        for place, ((bits, symmetric), names) in enumerate(sorted(groups.items()))
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": FORMAT,
        "config_groups": schemes,
        "ignore": sorted(every - quantized | {"lm_head"}),
        "kv_cache_scheme": None,
    }


def _notes(found: Shipment, groups: Mapping[tuple[int, bool], list[str]], tables: set[str]) -> list[str]:
    widths = sorted({bits for bits, _ in groups})
    notes = []
    if stored := [name for name in found.widths if name in tables]:
        notes.append(
            f"{', '.join(stored)} has the values that were searched, written out in bfloat16: no server looks tokens "
            "up in packed codes, and the file is larger than moopt's own."
        )
    if not all(symmetric for _, symmetric in groups):
        notes.append(
            "It has zero points, which transformers 5.23 with compressed-tensors 0.20 does not load (it takes their "
            "packed shape for an error). Search with quantizer='rtn-symmetric' for what both load."
        )
    if len(groups) > 1:
        notes.append("Load it as it is: with dequantize=True transformers 5.23 reads all widths as if they were one.")
    if odd := [bits for bits in widths if bits not in (4, 8)]:
        notes.append(
            f"It has widths of {', '.join(map(str, odd))} bits, which transformers loads; vLLM's kernels take 4 and 8."
        )
    return notes
