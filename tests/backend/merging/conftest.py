"""A tiny model, and others tuned from it at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


def tuned(base: Path, folder: Path, seed: int, amount: float = 0.02) -> Path:
    """A copy of a model whose weights are moved at random."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    moved = {n: w + amount * torch.randn(w.shape, generator=generator).to(w.dtype) for n, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def family(save: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders by name: "base", and "a", "b" and "c", which were tuned from it."""
    base, place = save("llama"), tmp_path_factory.mktemp("family")
    return {"base": str(base)} | {n: str(tuned(base, place / n, seed)) for seed, n in enumerate("abc")}
