"""Tiny networks that are really trained on scikit-learn's digits, in seconds and once: see `digits_bits`."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, scaled_dot_product_attention

from moopt.backend import cache
from moopt.errors import ProblemError
from moopt.whole import whole_file

STEPS, BATCH, RATE = 250, 96, 5e-3
"""Of Adam, with a learning rate that rises and falls (one cycle)."""

TRAINING, VALIDATION = 1_200, 100
"""Images for the weights, and images that candidates are measured on; the other 497 are held out."""


class Digits(NamedTuple):
    """Images [n, 64] with pixels from 0 to 1, and labels [n]."""

    images: Tensor
    labels: Tensor


def digits() -> dict[str, Digits]:
    """scikit-learn's digits in an order of their own: "training", "validation" and "held-out".

    Raises:
        ProblemError: scikit-learn is not installed; says how to.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ProblemError(
            "DigitsBits needs the images of scikit-learn, which is not installed: pip install scikit-learn."
        ) from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    ends = (TRAINING, TRAINING + VALIDATION)
    parts = {"training": slice(0, ends[0]), "validation": slice(*ends), "held-out": slice(ends[1], None)}
    return {name: Digits(x[part], y[part]) for name, part in parts.items()}


class _Block(nn.Module):
    """Normalise, widen, narrow, add."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(relu(self.up(self.norm(x))))
        return out


class _Attention(nn.Module):
    """Normalise, attend with one head, add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        out: Tensor = x + self.o(scaled_dot_product_attention(self.q(normed), self.k(normed), self.v(normed)))
        return out


class MLP(nn.Module):
    """Ten residual blocks: 22 linears."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(_Block(32, 32) for _ in range(10))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Transformer(nn.Module):
    """A vision transformer over the 4 quarters of an image: four blocks, 26 linears."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, 24), nn.Parameter(0.02 * torch.randn(4, 24))
        self.blocks = nn.ModuleList(m for _ in range(4) for m in (_Attention(24), _Block(24, 48)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(_quarters(images)) + self.place
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def _quarters(images: Tensor) -> Tensor:
    """Images [n, 64] as their four corners [n, 4, 16]."""
    return images.view(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 16)


NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "transformer": Transformer}


def linears(name: str) -> dict[str, tuple[int, int]]:
    """The linears of a network and their shapes (outputs, inputs), without making any weights."""
    with torch.device("meta"):
        network = NETWORKS[name]()
    found = network.named_modules()
    return {each: (m.out_features, m.in_features) for each, m in found if isinstance(m, nn.Linear)}


def trained(name: str) -> nn.Module:
    """The network of that name, trained; from the cache if it was trained before by the same code."""
    recipe = [name, TRAINING, STEPS, BATCH, RATE, str(NETWORKS[name]()), torch.__version__, version("scikit-learn")]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    path = cache.folder() / "digits" / f"{name}-{digest}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name]()
        if not path.exists():
            _train(network, digits()["training"])
            with whole_file(path) as temporary:
                save_file(network.state_dict(), temporary)
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _train(network: nn.Module, data: Digits) -> None:
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(data.labels), (BATCH,))
        optimizer.zero_grad()
        cross_entropy(network(data.images[rows]), data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
