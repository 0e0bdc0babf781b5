"""What the linear layers of a model read on a calibration text, block by block, kept on disk.

<cache>/calibration/<model>/<text>/<block>.safetensors has the second moments of one block's inputs, once for all layers
that read the same. Only the states between two blocks and one block's moments are held at a time. A process that was
stopped goes on at the block it had not written; to get there it runs the blocks before, but sums nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moopt.backend import cache, checked
from moopt.backend.blocks import Resident, Walk, everything
from moopt.backend.inputs import Inputs
from moopt.backend.language import product
from moopt.errors import QuantizationError

logger = logging.getLogger("moopt")

VERSION = 1
"""To be raised when moments are computed otherwise: what is stored of the old ones is then made again."""
SHARE_OF_DISK = 0.25
"""Of what is free where the cache is, what the moments of a model may take."""


class Calibration:
    """The inputs of a model's linear layers on one text.

    Args:
        model: Set to the original's weights whenever `inputs` is called.
        linears: Names of the layers.
        ids: The text, sequences [s, t], on the model's device.
        version: What identifies the model's weights.
        resident: Brings a block's weights, where the model is not held whole.
    """

    def __init__(
        self, model: Any, linears: Collection[str], ids: Tensor, version: str, resident: Resident = everything
    ) -> None:
        self._model, self._linears, self.tokens = model, linears, ids.numel()
        self._walk = Walk(model, ids, resident)
        self.key = _key(ids, str(next(model.parameters()).dtype))
        self._folder = cache.folder() / "calibration" / version / self.key
        self._current: tuple[int, dict[str, Inputs]] | None = None

    def inputs(self, name: str) -> Inputs | None:
        """What a layer reads; None where that is not known: for an embedding, or if it reads nothing of the text.

        Raises:
            QuantizationError: what it reads is not finite.
        """
        if name not in self._linears:
            return None
        stage = self._walk.stage(name)
        if self._current is None or self._current[0] != stage:
            self._current = None  # one block's at a time
            self._current = (stage, _unpacked(self._fetched(stage)))
        return self._current[1].get(name)

    def expected_bytes(self) -> int:
        """About what the moments of all blocks take on disk, from those that are there."""
        sizes = [file.stat().st_size for file in self._folder.glob("*.safetensors")]
        return sum(sizes) * self._walk.stages // max(len(sizes), 1)

    def _fetched(self, stage: int) -> dict[str, Tensor]:
        return checked.fetch(self._folder / f"{stage}.safetensors", lambda: self._made(stage), self._fits)

    def _fits(self, size: int) -> bool:
        """Whether moments of this size may be stored of every block."""
        return size * self._walk.stages < SHARE_OF_DISK * checked.free(self._folder)

    def _made(self, stage: int) -> dict[str, Tensor]:
        sums = _Sums()
        names = [name for name in self._linears if self._walk.stage(name) == stage]
        with sums.listening({name: self._model.get_submodule(name) for name in names}):
            self._walk.run(stage, sums.forget)
        readers = {name for together in sums.readers.values() for name in together}
        if idle := [name for name in names if name not in readers]:
            logger.info("Nothing of the calibration text is read by %s: quantized without.", ", ".join(idle))
        return sums.packed()


class _Sums:
    """Adds up x x' of what layers read, once for all that read the very same tensor.

    Attributes:
        readers: The layers that read the same, by the first of them.
    """

    def __init__(self) -> None:
        self.readers: dict[str, list[str]] = {}
        self._moments: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._seen: list[tuple[Tensor, str]] = []

    @contextmanager
    def listening(self, layers: dict[str, nn.Module]) -> Iterator[None]:
        """While open, what these layers read is added."""
        handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget(self) -> None:
        """Let go of the inputs that were seen: the next ones are others."""
        self._seen = []

    def packed(self) -> dict[str, Tensor]:
        """Mean moments by the names of their readers, and beside them the numbers of tokens."""
        parts = {}
        for first, moment in self._moments.items():
            mean = moment / self._tokens[first]
            if not mean.isfinite().all():
                raise QuantizationError(
                    f"{first} reads numbers that are not finite, or overflow, on the calibration text. Check the "
                    "model's weights and type, skip the layer, or take a quantizer without calibration."
                )
            parts[" ".join(self.readers[first])] = mean.cpu()
            parts[f"{first} tokens"] = torch.tensor(self._tokens[first])
        return parts

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            first = next((first for seen, first in self._seen if seen is x), name)
            readers = self.readers.setdefault(first, [])
            if name not in readers:
                readers.append(name)
            if first == name:
                self._seen.append((x, name))
                self._add(name, x.reshape(-1, x.shape[-1]))

        return add

    def _add(self, name: str, rows: Tensor) -> None:
        columns = rows.T.contiguous()
        moment = product(columns, columns if rows.is_cuda else columns.float())
        if name in self._moments:
            self._moments[name] += moment
        else:
            self._moments[name] = moment
        self._tokens[name] = self._tokens.get(name, 0) + len(rows)


def _unpacked(parts: dict[str, Tensor]) -> dict[str, Inputs]:
    found: dict[str, Inputs] = {}
    for names, moment in parts.items():
        if not names.endswith(" tokens"):
            readers = names.split(" ")
            inputs = Inputs(", ".join(readers), moment, int(parts[f"{readers[0]} tokens"]))
            found |= dict.fromkeys(readers, inputs)
    return found


def _key(ids: Tensor, dtype: str) -> str:
    digest = hashlib.sha256(f"{VERSION} {dtype} {tuple(ids.shape)} ".encode())
    digest.update(ids.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
