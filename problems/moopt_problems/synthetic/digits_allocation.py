"""Bit allocation in tiny trained networks with all a language model offers: minibatches, samples, tables, gradients.

`DigitsBits` has a third objective and tells nothing of a problem; this one is for comparing methods of allocation at
milliseconds an evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad

import moopt
from moopt.backend.quantizers import rtn
from moopt.errors import ProblemError
from moopt_problems import checks
from moopt_problems.synthetic.digits_bits import GROUP_BYTES
from moopt_problems.synthetic.digits_networks import NETWORKS, digits, linears, trained
from moopt_problems.synthetic.level_switch import level_switch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PASSES = {"fisher": 3, "fisher-columns": 3, "hawq-v2": 9, "one-layer": 1}
"""What each token of a table costs in forward passes, for every pass it takes; a backward pass counts two."""
VIEWS = [(down, right) for down in (0, -1, 1) for right in (0, -1, 1)]
"""By how many pixels an image is moved: itself first, and its eight neighbours."""
TOKENS_A_DRAW = 4 * len(VIEWS)
"""Of each of Hutchinson's draws."""
SPLITS = {"search": slice(0, 300), "validation": slice(300, 350), "held-out": slice(350, None)}
"""Of the 597 images that the network was not trained on: what it has learned by heart says little of the others."""


class DigitsAllocation(moopt.Problem):
    """The width of every linear of a tiny network; `kl` per token from the original network against `size_kb`.

    An image is a sequence of nine tokens: the image, and moved by a pixel to each side and corner. What a search does
    well on images as they are is mostly luck: there are three hundred for searching, and the network is sure of nearly
    all. Needs scikit-learn; `DigitsBits` says more of the networks.

    Args:
        network: "transformer" (26 decisions) or "mlp" (22).
        bits: The widths to choose from, 1 to 8.
        tokens: Of an evaluation, in whole images.
        sensitivities: The method of the table whose knapsacks a study opens with, see `sensitivities`; None for none.
        sensitivity_tokens: What they may use.
        draw: Which images and labels sensitivities and gradients are made of.

    Raises:
        ProblemError: there is no such network or table, or a number is out of its range.
    """

    objectives = (
        moopt.Objective("kl", unit="nats", scale="log", least=1e-5), moopt.Objective("size_kb", unit="kB", known=True)
    )  # fmt: skip

    gradient_tokens = 360

    def __init__(
        self, network: str = "transformer", bits: Sequence[int] = (2, 3, 4, 6, 8), tokens: int = 1_152,
        sensitivities: str | None = "fisher-columns", sensitivity_tokens: int = 2_304, draw: int = 0,
    ) -> None:  # fmt: skip
        self._arguments = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        if network not in NETWORKS:
            raise ProblemError(f"There is no network {network!r}; expected one of {', '.join(NETWORKS)}.")
        if wrong := [b for b in bits if b not in range(1, 9)]:
            raise ProblemError(f"Got the width {wrong[0]!r}; expected whole numbers from 1 to 8.")
        if sensitivities is not None and sensitivities not in PASSES:
            raise ProblemError(f"There is no table {sensitivities!r}; expected one of {', '.join(PASSES)}, or None.")
        checks.whole(4 * len(VIEWS), tokens=tokens, sensitivity_tokens=sensitivity_tokens)
        checks.whole(0, draw=draw)
        self.network, self.bits, self.draw = network, tuple(bits), draw
        self.shapes = linears(network)
        self.space = moopt.Space({name: moopt.Ordinal(*bits) for name in self.shapes})
        widths = np.array(bits, dtype=np.int64)
        self._costs: IntArray = np.array(
            [rows * (-(-columns * widths // 8) + GROUP_BYTES) for rows, columns in self.shapes.values()]
        )
        self.fidelity = moopt.Fidelity(tokens)
        self.rungs = [n for n in (tokens // 16, tokens // 4) if n >= 4 * len(VIEWS)]
        if sensitivities is not None:
            self.sensitivity = moopt.Fidelity(sensitivity_tokens, sensitivities)

    def setup(self, resources: moopt.Resources) -> None:
        self._network  # noqa: B018 - trains, or reads what was trained

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {"size_kb": float(self._costs[np.arange(len(self._costs)), self._choice(config)].sum()) / 1000}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        images = self._images(fidelity)
        self._become(config)
        with torch.inference_mode():
            samples = self._divergences(images).double().view(-1, len(VIEWS)).mean(1)
        error = float(samples.var()) / len(samples)
        return moopt.Evaluation({"kl": float(samples.mean())}, {"kl": error}, {"kl": samples.tolist()})

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"uniform-{b}": dict.fromkeys(self.space.names, b) for b in self.bits}

    def costs(self) -> IntArray:
        """The bytes of each linear at each width, [linears, widths], scales and zero points included."""
        return self._costs

    def moves(self, config: moopt.Config, rng: np.random.Generator) -> moopt.Config:
        """A level switch: one linear one level up, another one down."""
        return level_switch(self.space, config, rng)

    def forward_tokens(self, kind: str, fidelity: moopt.Fidelity) -> int:
        if kind == "gradient":
            return 5 * fidelity.tokens
        if kind == "sensitivity":
            passes = len(self.shapes) * len(self.bits) if fidelity.batch == "one-layer" else 1
            return PASSES[str(fidelity.batch)] * passes * fidelity.tokens
        return fidelity.tokens

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The loss of setting one linear to one width and leaving the others as they were, [linears, widths].

        Args:
            method: "fisher" (sampled labels, along each change), "fisher-columns" (along each of its columns),
                "hawq-v2" (Hutchinson's trace of the Hessian, times the squared error) or "one-layer" (measured).
            tokens: What to use, in whole images.
        """
        images = self._drawn(tokens, 1_000_000 + self.draw)
        self._become({})
        if method == "one-layer":
            return np.array([[self._alone(name, b, images) for b in self.bits] for name in self.space.names])
        if method == "hawq-v2":
            return self._traces(images)[:, None] * self._errors() / 2
        if method not in ("fisher", "fisher-columns"):
            return self._refused(method)
        return self._directional(images, sampled=True, by_columns=method == "fisher-columns")

    def gradient(
        self, config: moopt.Config, fidelity: moopt.Fidelity
    ) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """`kl` at a candidate, and what each change adds to it: slope and sampled curvature, [linears, widths] each."""
        images = self._drawn(fidelity.tokens, 1000 * (1 + self.draw) + int(fidelity.batch))
        self._become(config)
        linear = self._directional(images, sampled=False)
        curvature = self._directional(images, sampled=True, by_columns=True)
        with torch.inference_mode():
            return {"kl": float(self._divergences(images).mean())}, linear, curvature

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._arguments)

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        identity = {**self._arguments, "bits": list(self.bits), "problem": "digits allocation"}
        return {"identity": identity, "environment": {"torch": torch.__version__}}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_network", "_linears", "_matrices", "_splits")}

    @cached_property
    def _network(self) -> nn.Module:
        return trained(self.network)

    @cached_property
    def _linears(self) -> dict[str, nn.Linear]:
        return {name: m for name, m in self._network.named_modules() if isinstance(m, nn.Linear)}

    @cached_property
    def _matrices(self) -> dict[tuple[str, int | None], Tensor]:
        """Every matrix at every width; None is the original."""
        weights = {name: linear.weight.data for name, linear in self._linears.items()}
        found: dict[tuple[str, int | None], Tensor] = {(name, None): weight for name, weight in weights.items()}
        return found | {(name, b): rtn(w, b, w.shape[1]).dequantize() for name, w in weights.items() for b in self.bits}

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The images of each split, and the original's log probabilities of them."""
        matrices, data = self._matrices, digits()
        unseen = torch.cat([data[part].images for part in ("validation", "held-out")])
        for name, linear in self._linears.items():
            linear.weight.data = matrices[name, None]
        with torch.inference_mode():
            images = {split: _views(unseen[part]) for split, part in SPLITS.items()}
            return {split: (x.clone(), log_softmax(self._network(x), 1)) for split, x in images.items()}

    def _images(self, fidelity: moopt.Fidelity) -> tuple[Tensor, Tensor]:
        """The tokens of a fidelity: the beginning of a split, for a number above 0 a draw for searching."""
        if isinstance(fidelity.batch, int) and fidelity.batch:
            return self._drawn(fidelity.tokens, fidelity.batch)
        images, originals = self._splits[fidelity.batch or "search"]
        most = fidelity.tokens // len(VIEWS) * len(VIEWS)
        return images[:most], originals[:most]

    def _drawn(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        images, originals = self._splits["search"]
        chosen = (count // len(VIEWS), 1)
        starts = torch.randint(len(images) // len(VIEWS), chosen, generator=torch.Generator().manual_seed(seed))
        rows = (starts * len(VIEWS) + torch.arange(len(VIEWS))).reshape(-1)
        return images[rows], originals[rows]

    def _become(self, config: moopt.Config) -> None:
        """Take the widths of a candidate; what it leaves out is not quantized."""
        self._splits  # noqa: B018 - made with the originals
        for name, linear in self._linears.items():
            linear.weight.data = self._matrices[name, config.get(name)]

    def _divergences(self, images: tuple[Tensor, Tensor]) -> Tensor:
        """The divergence from the original at each token, [n]."""
        found: Tensor = (images[1].exp() * (images[1] - log_softmax(self._network(images[0]), 1))).sum(1)
        return found

    def _alone(self, name: str, bits: int, images: tuple[Tensor, Tensor]) -> float:
        self._become({name: bits})
        with torch.inference_mode():
            return float(self._divergences(images).mean())

    def _directional(self, images: tuple[Tensor, Tensor], sampled: bool, by_columns: bool = False) -> FloatArray:
        """From where the network is: the mean slope of `kl` along each change, or with sampled labels its curvature.

        That of the whole change, or of each of its columns for itself (see `moopt.backend.sensitivity`).
        """
        with self._watched() as (inputs, outputs):
            predicted = log_softmax(self._network(images[0]), 1)
            generator = torch.Generator().manual_seed(self.draw)
            labels = torch.multinomial(predicted.detach().exp(), 1, generator=generator)
            loss = -predicted.gather(1, labels).sum() if sampled else -(images[1].exp() * predicted).sum()
            slopes = torch.autograd.grad(loss, list(outputs.values()))
        table = np.empty((len(self.shapes), len(self.bits)))
        for row, (name, slope) in enumerate(zip(outputs, slopes, strict=True)):
            for column, b in enumerate(self.bits):
                change = self._matrices[name, b] - self._linears[name].weight.data
                columns = ((slope @ change) * inputs[name]).double()
                along = columns.view(len(columns), -1, columns.shape[-1]).sum(1)  # [tokens, inputs]
                parts = along if by_columns else along.sum(1, keepdim=True)
                table[row, column] = float(parts.square().sum(1).mean() / 2 if sampled else parts.mean())
        return table

    @contextmanager
    def _watched(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """While the network runs: what each linear reads, and what it gives, for gradients of that."""
        inputs, outputs = dict[str, Tensor](), dict[str, Tensor]()

        def watch(name: str, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            inputs[name], outputs[name] = given[0].detach(), out if out.requires_grad else out.requires_grad_()
            return outputs[name]

        hooks = [
            linear.register_forward_hook(lambda _, given, out, name=name: watch(name, given, out))
            for name, linear in self._linears.items()
        ]
        try:
            yield inputs, outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _traces(self, images: tuple[Tensor, Tensor]) -> FloatArray:
        """The mean eigenvalue of the Hessian of `kl` in each matrix, by Hutchinson's draws, [linears]."""
        weights = [linear.weight for linear in self._linears.values()]
        generator, found = torch.Generator().manual_seed(self.draw), np.zeros(len(weights))
        for weight in weights:
            weight.requires_grad_(True)
        try:
            parts = list(zip(images[0].split(TOKENS_A_DRAW), images[1].split(TOKENS_A_DRAW), strict=True))
            for part in parts:
                slopes = torch.autograd.grad(self._divergences(part).mean(), weights, create_graph=True)
                signs = [torch.randint(0, 2, w.shape, generator=generator).float() * 2 - 1 for w in weights]
                products = torch.autograd.grad(slopes, weights, signs)
                found += [float((z * product).mean()) for z, product in zip(signs, products, strict=True)]
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        return found.clip(0) / len(parts)

    def _errors(self) -> FloatArray:
        """The squared error of each matrix at each width, [linears, widths]."""
        return np.array(
            [
                [float((self._matrices[n, b] - self._matrices[n, None]).square().sum()) for b in self.bits]
                for n in self.shapes
            ]
        )

    def _refused(self, method: str) -> FloatArray:
        raise ProblemError(f"There is no table {method!r}; expected one of {', '.join(PASSES)}.")

    def _choice(self, config: moopt.Config) -> IntArray:
        return self.space.encode(config).astype(np.int64)


def _views(images: Tensor) -> Tensor:
    """Each of images [n, 64] moved by a pixel, [n * views, 64]; what comes in from the edge is empty."""
    padded = pad(images.view(-1, 8, 8), (1, 1, 1, 1))
    moved = [padded[:, 1 + down : 9 + down, 1 + right : 9 + right] for down, right in VIEWS]
    return torch.stack(moved, 1).reshape(-1, 64)
