"""GPTQ's layout, as GPTQModel writes it: one width for most modules, and `dynamic` overrides for the others.

Beside each module's name: `qweight` int32, codes packed along the inputs; `qzeros` int32, zero points packed along the
outputs; `scales` float16; `g_idx`, the group of each input. Nothing is quantized again. The format "gptq" has zero
points less one: readers that add it to whole words would carry a zero point of 0 into its neighbour, so that it is
written for symmetric codes alone, "gptq_v2" for the others. A pattern names fused modules, too, as vLLM calls them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moopt.backend.exporters.shipment import coded, finished, raised, write_beside
from moopt.backend.exporters.words import words
from moopt.backend.external.gptq import WIDTHS
from moopt.backend.options import bits_of, rank_of
from moopt.backend.quantizers import Quantized
from moopt.backend.targets import TARGETS
from moopt.errors import ExportError
from moopt.exporting import Exporter, Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.safetensors"
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What vLLM calls modules that it runs as one."""


class GPTQ(Exporter):
    """Codes and zero points as they are; tables at 16 bits, as no server looks tokens up in packed codes."""

    name = "gptq"
    about = "GPTQModel, transformers with gptqmodel"
    everywhere = "most kernels run"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = coded(problem, config, self.name)
        kinds = {weight.name: weight.kind for weight in found.layout.inventory.weights}
        tensors, widths = found.rest(), dict[str, int]()
        for name, option in found.widths.items():
            if kinds[name] != "linear":
                tensors[f"{found.named(name)}.weight"] = found.values(name).to(torch.bfloat16)
                continue
            bits = bits_of(option)
            if bits not in WIDTHS or rank_of(option):
                raise ExportError(
                    f"{name} has {option}; gptq holds {', '.join(map(str, WIDTHS))} bits without repairs. Search with "
                    "bits=(2, 3, 4, 8), or export with snap='up', which gives such layers 4 or 8."
                )
            tensors |= _packed(found.named(name), found.quantized(name, option))
            widths[found.named(name)] = bits
        save_file(tensors, folder / FILE, {"format": "pt"})
        plain = [found.named(name) for name, kind in kinds.items() if kind == "linear" and name not in found.widths]
        described = _described(widths, plain, found.layout.group_size, found.layout.symmetric)
        write_beside(folder, found, described)
        (folder / "quantize_config.json").write_text(json.dumps(described, indent=1) + "\n")
        size = sum(tensor.nbytes for tensor in tensors.values())
        notes = ["The embedding and the head have the values that were searched, written out in bfloat16."]
        return finished(found, folder, size, [], notes)

    def raised(self, problem: Problem, config: Config) -> Config:
        return raised(problem, config, self.name, lambda option: option in TARGETS["vllm"].bits, fused=True)


def _packed(name: str, matrix: Quantized) -> dict[str, Tensor]:
    """The tensors of one matrix."""
    if type(matrix) is not Quantized or matrix.shift:
        raise ExportError(f"{name} has codes that gptq lacks; search with 'rtn', 'rtn-symmetric', 'hqq' or 'gptq'.")
    (n, k), groups = matrix.codes.shape, matrix.scales.shape[1]
    middle, less = 2 ** (matrix.bits - 1), int(matrix.zeros is None)
    zeros = torch.full((n, groups), middle, dtype=torch.int16) if matrix.zeros is None else matrix.zeros.cpu().short()
    scales = matrix.scales.cpu().half()
    if int(zeros.max()) >= 2**matrix.bits or k * matrix.bits % 32 or n * matrix.bits % 32:
        raise ExportError(f"{name}, {n} x {k}, does not fill words of 32 bits at {matrix.bits} bits, as gptq needs it.")
    if not torch.allclose(scales.float(), matrix.scales.cpu().float(), rtol=2.0**-8, atol=0):
        raise ExportError(f"The scales of {name} are beyond float16, which gptq has them in.")
    return {
        f"{name}.qweight": words(matrix.codes, matrix.bits).T.contiguous(),
        f"{name}.qzeros": words((zeros - less).to(torch.uint8).T, matrix.bits),
        f"{name}.scales": scales.T.contiguous(),
        f"{name}.g_idx": (torch.arange(k) // (k // groups)).int(),
    }


def _described(widths: Mapping[str, int], plain: list[str], group_size: int, symmetric: bool) -> dict[str, Any]:
    """The `quantization_config`."""
    most = Counter(widths.values()).most_common(1)[0][0]
    own = {_pattern("+", name, widths): {"bits": bits} for name, bits in widths.items() if bits != most}
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if symmetric else "gptq_v2",
        "bits": most,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": False,
        "dynamic": {**own, **{_pattern("-", name, dict.fromkeys(plain, 16)): {} for name in plain}},
    }


def _pattern(sign: str, name: str, widths: Mapping[str, int]) -> str:
    """What matches a module, and what it is fused into if all of that has the same width."""
    parent, _, leaf = name.rpartition(".")
    for fused, members in FUSED.items():
        whole = [f"{parent}.{member}" for member in members]
        if leaf in members and {widths.get(each) for each in whole} == {widths[name]}:
            return f"{sign}:^{re.escape(parent)}\\.({leaf}|{fused})$"
    return f"{sign}:^{re.escape(name)}$"
