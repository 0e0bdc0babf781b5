"""Low-rank repairs as an adapter in PEFT's layout, beside the model that they repair."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from moopt.backend.exporters.shipment import coded, finished, write_beside
from moopt.backend.options import bits_of, rank_of
from moopt.errors import ExportError
from moopt.exporting import Exporter, Written
from moopt.problem import Problem
from moopt.space import Config

BASE = "base"
"""The folder, in the export's, of the model that the adapter is for."""


class PEFT(Exporter):
    """The quantized model without its repairs, written out in bfloat16, and the repairs as an adapter for it."""

    name = "peft"
    about = "PEFT, and what loads its adapters: low-rank repairs apart from the model"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = coded(problem, config, self.name)
        ranks = {name: rank_of(option) for name, option in found.widths.items() if rank_of(option)}
        if not ranks:
            raise ExportError(
                "The candidate has no low-rank repairs; export 'checkpoint', or search with quantizer='eora'."
            )
        adapter, tensors = {}, found.rest()
        for name, option in found.widths.items():
            matrix = found.quantized(name, option)
            if matrix.repair is not None:
                adapter[f"base_model.model.{name}.lora_A.weight"] = matrix.repair.down.cpu().contiguous()
                adapter[f"base_model.model.{name}.lora_B.weight"] = matrix.repair.up.cpu().contiguous()
                matrix = found.quantized(name, bits_of(option))
            tensors[f"{found.named(name)}.weight"] = matrix.dequantize(torch.bfloat16)
        (folder / BASE).mkdir()
        save_file(tensors, folder / BASE / "model.safetensors", {"format": "pt"})
        write_beside(folder / BASE, found)
        save_file(adapter, folder / "adapter_model.safetensors", {"format": "pt"})
        exactly = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
        described = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "inference_mode": True,
            "r": max(ranks.values()), "lora_alpha": max(ranks.values()), "lora_dropout": 0.0, "bias": "none",
            "target_modules": sorted(ranks), "rank_pattern": exactly, "alpha_pattern": exactly,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=1) + "\n")
        size = sum(tensor.nbytes for tensor in (*tensors.values(), *adapter.values()))
        note = (
            f"The adapter belongs to the model in {BASE}, which is quantized and written out again in bfloat16. Load "
            f'that first: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(".../{BASE}"), "...").'
        )
        rank = max(ranks.values())
        serve = [f"vllm serve {{path}}/{BASE} --enable-lora --max-lora-rank {rank} --lora-modules repaired={{path}}"]
        return finished(found, folder, size, serve, [note])
