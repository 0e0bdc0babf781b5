"""A tiny vision transformer and models tuned from it, each to its own kind of digits: real material for merging.

They are made in seconds, once, and kept in the cache as folders that transformers loads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache as once
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from moopt.backend import cache
from moopt.backend.merging.tasks import Classification, Data
from moopt.errors import ProblemError
from moopt.whole import whole_folder
from moopt_problems.synthetic.digits_networks import digits

Kind = Literal["rotated", "split"]
TASKS = 8
SHAPE: dict[str, Any] = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 96, "num_labels": 10, "hidden_dropout_prob": 0.0,
}  # fmt: skip
PRETRAINING, TUNING, BATCH, RATE, TUNING_RATE = 1500, 120, 96, 5e-3, 5e-4
"""Steps of the base and of each fine-tune, images of a step, and the highest learning rates of both (one cycle)."""
SPLITS = {"search": slice(0, 200), "validation": slice(200, 300), "held-out": slice(300, None)}
"""Of the images that nothing was trained on."""


def tuned(kind: Kind = "rotated", count: int = TASKS) -> dict[str, str]:
    """Folders of the base, "base", and of models tuned from it, "task-0" and so on.

    The base has seen all digits, turned by any angle, and has learned some. Of kind "rotated" model i is tuned to
    digits turned by 360 i / 8 degrees; of kind "split" to upright images of two digits only, i and i + 1.

    Args:
        kind: What the models are tuned to.
        count: How many, at most 8.

    Raises:
        ProblemError: there is no such kind or not so many, or scikit-learn is not installed.
    """
    if kind not in ("rotated", "split") or not 1 <= count <= TASKS:
        raise ProblemError(f"Got {count} models of kind {kind!r}; expected 1 to {TASKS}, 'rotated' or 'split'.")
    found = {"base": str(_made("base", kind, 0))}
    return found | {f"task-{i}": str(_made("task", kind, i)) for i in range(count)}


def tasks(kind: Kind = "rotated", count: int = TASKS, measure: Literal["accuracy", "loss"] = "accuracy") -> list[Any]:
    """The tasks that the models of `tuned` are tuned to, on images that no model has seen."""
    return [Classification(f"task-{i}", partial(images, kind, i), measure) for i in range(count)]


def irrelevant(count: int) -> dict[str, str]:
    """Folders of models tuned from the base to labels that were shuffled: they know nothing of any task."""
    return {f"noise-{i}": str(_made("noise", "rotated", i)) for i in range(count)}


@once
def images(kind: Kind, number: int) -> Data:
    """Inputs [n, 1, 8, 8] and labels [n] of a task, by split."""
    every = digits()
    pixels, labels = (torch.cat([every[split][i] for split in ("validation", "held-out")]) for i in (0, 1))
    return {split: _of_task(pixels[part], labels[part], kind, number) for split, part in SPLITS.items()}


def _of_task(pixels: Tensor, labels: Tensor, kind: Kind, number: int) -> tuple[Tensor, Tensor]:
    """The images of a task: all of them, turned, or those of its two digits."""
    square = pixels.view(-1, 1, 8, 8)
    if kind == "rotated":
        return _turned(square, torch.full((len(square),), 360.0 / TASKS * number)), labels
    own = (labels == number % 10) | (labels == (number + 1) % 10)
    return square[own], labels[own]


def _turned(square: Tensor, degrees: Tensor) -> Tensor:
    """Images [n, 1, 8, 8], each turned about its centre."""
    angle = degrees * math.pi / 180
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    rows = torch.stack([torch.stack([cosine, -sine, zero], -1), torch.stack([sine, cosine, zero], -1)], 1)
    return grid_sample(square, affine_grid(rows, list(square.shape), align_corners=False), align_corners=False)


def _made(role: str, kind: Kind, number: int) -> Path:
    """A model's folder; it is trained if it is not in the cache."""
    recipe = [
        role,
        kind,
        number,
        SHAPE,
        PRETRAINING,
        TUNING,
        BATCH,
        RATE,
        TUNING_RATE,
        torch.__version__,
        version("scikit-learn"),
    ]
    digest = hashlib.sha256(json.dumps(recipe if role != "base" else [role, *recipe[3:]]).encode()).hexdigest()[:12]
    folder = cache.folder() / "digits" / f"vit-{role}-{number}-{digest}"
    if not folder.exists():
        with torch.random.fork_rng(devices=[]), whole_folder(folder) as temporary:
            torch.manual_seed(number)
            network = _network() if role == "base" else _loaded(_made("base", kind, 0))
            steps, rate = (PRETRAINING, RATE) if role == "base" else (TUNING, TUNING_RATE)
            _train(network, _examples(role, kind, number), steps, rate)
            network.save_pretrained(temporary, save_original_format=False)  # by its modules' names
    return folder


def _network() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**SHAPE))


def _loaded(folder: Path) -> Any:
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(folder)


def _examples(role: str, kind: Kind, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end."""
    training = digits()["training"]
    square, labels = training.images.view(-1, 1, 8, 8), training.labels
    if role == "task":
        square, labels = _of_task(training.images, labels, kind, number)
    elif role == "noise":
        labels = labels[torch.randperm(len(labels))]
    while True:
        rows = torch.randint(len(labels), (BATCH,))
        chosen = square[rows]
        yield (_turned(chosen, 360 * torch.rand(BATCH)) if role == "base" else chosen), labels[rows]


def _train(network: nn.Module, examples: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float) -> None:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for pixels, labels in islice(examples, steps):
        optimizer.zero_grad()
        cross_entropy(network(pixels).logits, labels).backward()
        optimizer.step()
        schedule.step()
    network.eval()
