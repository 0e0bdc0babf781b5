"""moopt's own packed file, for `moopt.load`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moopt.backend import packed
from moopt.backend.exporters.clients import Logits, Run
from moopt.backend.exporters.shipment import coded, finished
from moopt.backend.loading import load
from moopt.exporting import Written
from moopt.problem import Problem
from moopt.space import Config

FILE = "model.safetensors"


class PackedFile(Run):
    """One safetensors file of exactly the bytes that the search counted."""

    name = "moopt"
    about = "moopt.load, which runs it from the packed codes"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        found = coded(problem, config, self.name)
        packed.write(folder / FILE, found.layout, found.widths, found.quantized, found.parameters)
        found.tokenizer.save_pretrained(folder)
        size = found.layout.total_bytes(found.widths)
        serve = [f"python -c 'import moopt, sys; model = moopt.load(sys.argv[1])' {{path}}/{FILE}"]
        return finished(found, folder, size, serve, [])

    @contextmanager
    def client(self, folder: Path, context: int) -> Iterator[Logits]:
        model = load(folder / FILE)
        yield lambda row: model(input_ids=row[None]).logits[0]
