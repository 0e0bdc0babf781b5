"""A plain checkpoint that any tool loads: what a candidate computes with, written out number by number."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import save_file

from moopt.backend.exporters.clients import Logits, Run, in_transformers
from moopt.backend.exporters.shipment import Merges, finished, shipment, write_beside, written
from moopt.exporting import Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.safetensors"


class Checkpoint(Run):
    """A bfloat16 checkpoint in the model's original layout: merged, or quantized and written out again.

    A quantized candidate is simulated: it is as large as the original, and no faster.
    """

    name = "checkpoint"
    about = "whatever loads the original: transformers, vLLM, llama.cpp's converter"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        serve = ["vllm serve {path}"]
        if isinstance(problem, Merges):
            merged = problem.save(config, folder / "merged")
            for file in merged.iterdir():
                file.rename(folder / file.name)
            merged.rmdir()
            made_of = [*([problem.base] if problem.base else []), *problem.models.values()]
            files = any(place.endswith(".safetensors") for place in made_of)  # a network of the user's own
            return written((folder / FILE).stat().st_size, [] if files else serve, [], made_of)
        found = shipment(problem, config, self.name)
        tensors = found.rest()
        for name in found.widths:
            tensors[f"{found.named(name)}.weight"] = found.values(name).to(torch.bfloat16)
        save_file(tensors, folder / FILE, {"format": "pt"})
        write_beside(folder, found)
        size = sum(tensor.nbytes for tensor in tensors.values())
        note = "The weights are quantized and written out again in bfloat16: they take as much room as the original's."
        return finished(found, folder, size, serve, [note])

    def client(self, folder: Path, context: int) -> AbstractContextManager[Logits]:
        return in_transformers(folder)
