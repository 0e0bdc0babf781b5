"""moopt's own packed file, for `moopt.load`."""

from __future__ import annotations

from pathlib import Path

from moopt.backend import models, packed
from moopt.backend.exporters.shipment import shipment
from moopt.exporting import Exporter, Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.safetensors"


class PackedFile(Exporter):
    """One safetensors file of exactly the bytes that the search counted."""

    name = "moopt"
    about = "moopt.load, which runs it from the packed codes"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = shipment(problem, config, self.name)
        packed.write(folder / FILE, found.layout, found.widths, found.quantized, found.parameters)
        found.tokenizer.save_pretrained(folder)
        size = found.layout.total_bytes(found.widths)
        serve = [f"python -c \"import moopt; model = moopt.load('{{path}}/{FILE}')\""]
        return Written(size, serve, base=found.model, licence=models.licence(found.model))
