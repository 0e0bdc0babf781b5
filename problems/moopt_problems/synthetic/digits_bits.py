"""Bit allocation in tiny networks that are real: each linear of a classifier of digits has a width, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

import moopt
from moopt.backend.quantizers import rtn
from moopt.errors import ProblemError
from moopt_problems.synthetic.digits_networks import NETWORKS, Digits, digits, linears, trained
from moopt_problems.synthetic.level_switch import level_switch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GROUP_BYTES = 3
"""A scale in bfloat16 and a zero point of 8 bits for each row of a matrix."""

NOISE = 0.2
"""The standard deviation of what is added to the pixels of a damaged image; they go from 0 to 1."""


class DigitsBits(moopt.Problem):
    """The width of every linear of a tiny network, quantized by rounding to nearest, asymmetric, one group a row.

    Three objectives: `kl`, the mean divergence from the original network on 100 images; `damaged_loss`, the
    cross-entropy on the same images with noise; and `size_kb`, known. Their references leave out what nobody wants:
    worse than about what uniform 3 bits have, and larger than everything at the largest width. The network is trained
    when it is first needed, in seconds, and kept in moopt's cache. Needs scikit-learn.

    Args:
        network: "transformer" (26 decisions) or "mlp" (22).
        bits: The widths to choose from, 1 to 8.
        sensitivities: Whether a study opens with one-layer probes of `kl`; each probe counts as an evaluation.

    Raises:
        ProblemError: there is no such network, or a width is not 1 to 8.
    """

    fidelity = moopt.Fidelity(1)

    def __init__(
        self, network: str = "transformer", bits: tuple[int, ...] = (2, 3, 4, 6, 8), sensitivities: bool = False
    ) -> None:
        if network not in NETWORKS:
            raise ProblemError(f"There is no network {network!r}; expected one of {', '.join(NETWORKS)}.")
        if wrong := [b for b in bits if b not in range(1, 9)]:
            raise ProblemError(f"Got the width {wrong[0]!r}; expected whole numbers from 1 to 8.")
        self.network, self.bits, self.told = network, bits, sensitivities
        self.shapes = linears(network)
        self.space = moopt.Space({name: moopt.Ordinal(*bits) for name in self.shapes})
        widths = np.array(bits, dtype=np.int64)
        self._costs: IntArray = np.array(
            [rows * (-(-columns * widths // 8) + GROUP_BYTES) for rows, columns in self.shapes.values()]
        )
        self.objectives = (
            moopt.Objective("kl", unit="nats", reference=0.3),
            moopt.Objective("damaged_loss", unit="nats", reference=1.0),
            moopt.Objective("size_kb", unit="kB", known=True, reference=float(self._costs.max(axis=1).sum()) / 1000),
        )
        if sensitivities:
            self.sensitivity = moopt.Fidelity(len(self.shapes) * len(bits), "probes")
        else:
            self.sensitivities = None  # type: ignore[assignment, method-assign]

    def setup(self, resources: moopt.Resources) -> None:
        self._loaded  # noqa: B018 - trains, or reads what was trained

    def known(self, config: moopt.Config) -> Mapping[str, float]:
        return {"size_kb": float(self._costs[np.arange(len(self._costs)), self._codes(config)].sum()) / 1000}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        kl, damaged = self._loaded.measured(config)
        return moopt.Evaluation({"kl": kl, "damaged_loss": damaged})

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"uniform-{b}": dict.fromkeys(self.space.names, b) for b in self.bits}

    def costs(self) -> IntArray:
        """The bytes of each linear at each width, [linears, widths], scales and zero points included."""
        return self._costs

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The `kl` of setting one linear to one width and leaving the others as they were, [linears, widths]."""
        return np.array([[self._loaded.measured({name: b})[0] for b in self.bits] for name in self.space.names])

    def moves(self, config: moopt.Config, rng: np.random.Generator) -> moopt.Config:
        """A level switch: one linear one level up, another one down."""
        return level_switch(self.space, config, rng)

    def decisions(self) -> list[dict[str, Any]]:
        parts = {name: name.rpartition(".") for name in self.space.names}
        return [
            {"name": name, "row": row or "ends", "column": column, "label": name}
            for name, (row, _, column) in parts.items()
        ]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"network": self.network, "bits": self.bits, "sensitivities": self.told}

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        return {"identity": {"problem": f"digits {self.network}"}, "environment": {"torch": torch.__version__}}

    def _codes(self, config: moopt.Config) -> IntArray:
        return self.space.encode(config).astype(np.int64)

    @cached_property
    def _loaded(self) -> _Measured:
        return _Measured(self.network, self.bits, digits()["validation"])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_loaded"}


class _Measured:
    """A network with its matrices at every width, and the images it is measured on."""

    def __init__(self, name: str, bits: tuple[int, ...], data: Digits) -> None:
        self._network = trained(name)
        self._linears = {each: m for each, m in self._network.named_modules() if isinstance(m, nn.Linear)}
        originals = {each: linear.weight.data for each, linear in self._linears.items()}
        self._matrices: dict[tuple[str, int | None], Tensor] = {
            (each, b): rtn(weight, b, weight.shape[1]).dequantize() for each, weight in originals.items() for b in bits
        }
        self._matrices |= {(each, None): weight for each, weight in originals.items()}
        noise = NOISE * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
        self._images = torch.cat([data.images, (data.images + noise).clamp(0, 1)])
        self._labels = data.labels
        self._original = self._logits()[: len(data.labels)]

    def measured(self, config: moopt.Config) -> tuple[float, float]:
        """The divergence on clean images and the loss on damaged ones; what `config` leaves out is not quantized."""
        for name, linear in self._linears.items():
            linear.weight.data = self._matrices[name, config.get(name)]
        clean, damaged = self._logits().split(len(self._labels))
        divergence = (self._original.exp() * (self._original - clean)).sum(1).mean()
        return float(divergence), float(cross_entropy(damaged, self._labels))

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        return log_softmax(self._network(self._images), 1)
