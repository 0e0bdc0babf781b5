"""What an external option is: the matrices of somebody else's file, checked against the model they are to stand in."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from moopt.backend.simulated import Simulated
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError

States = tuple[tuple[Path, int, int], ...]
"""Files with their sizes, and when they were written."""
CLOSE = 2.0**-6
"""How far an unquantized parameter may be from the model's, relatively: two roundings to bfloat16."""


@dataclass(frozen=True)
class Stored:
    """A matrix as a file has it.

    Attributes:
        shape: n x k.
        bits: Of a code.
        bytes: Of all that belongs to the matrix.
    """

    shape: tuple[int, int]
    bits: int
    bytes: int


class External(Simulated):
    """The quantized matrices of a file, or of a folder.

    Args:
        name: What the option is called.
        path: Where it was found.
        files: What is read of it.
    """

    def __init__(self, name: str, path: Path, files: Sequence[Path]) -> None:
        self.name, self.path, self._files = name, path, tuple(files)
        self._states = _states(self._files)

    @abstractmethod
    def stored(self, weight: Weight) -> Stored | None:
        """How the file stores a matrix of the model; None if it does not, or not quantized."""

    @abstractmethod
    def read(self, weight: Weight) -> Tensor:
        """The values of a matrix that is stored, n x k, float32."""

    @abstractmethod
    def plain(self, parameter: str) -> Tensor | None:
        """A parameter of the model that the file has unquantized, by its name; None if it has not."""

    @cached_property
    def digest(self) -> str:
        """A hash of the files' whole contents."""
        return _digest(self._states)

    @property
    def key(self) -> str:
        return f"external-1-{self.digest}"

    def has(self, weight: Weight) -> bool:
        return self.stored(weight) is not None

    def bits(self, weight: Weight) -> int:
        return self._found(weight).bits

    def bytes(self, weight: Weight) -> int:
        return self._found(weight).bytes

    def fit(self, weights: Sequence[Weight]) -> None:
        """Refuse a file that has none of a model's matrices, or one of another shape.

        Raises:
            QuantizationError: says what came and what was expected.
        """
        linears = [weight for weight in weights if weight.kind == "linear"]
        found = [weight for weight in linears if self.has(weight)]
        if not found:
            raise self.refused(f"it has none of the model's layers quantized; expected such as {linears[0].name}")
        for weight in found:
            self._found(weight)

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Refuse a model whose unquantized vectors, such as norms, are not those of the file."""
        self._unchanged()
        for name, parameter in parameters.items():
            if parameter.ndim == 1 and (found := self.plain(name)) is not None:
                ours, theirs = parameter.detach().float().cpu(), found.float()
                if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=CLOSE, atol=1e-6):
                    raise self.refused(
                        f"{name} is not the model's. It is of another model, or its tool changed more than the "
                        "quantized matrices (AWQ and SmoothQuant move scales into norms): they do not fit one by one"
                    )

    def values(self, weight: Weight, original: Tensor) -> Tensor:
        self._unchanged()
        try:
            read = self.read(weight)
        except QuantizationError:
            raise
        except (IndexError, ValueError, RuntimeError) as error:  # tensors of a shape or type that no such file has
            raise self.refused(f"{weight.name} cannot be read ({error}); is it of that tool?") from error
        found, own = read.to(original.device), original.float()
        if not found.isfinite().all():
            raise self.refused(f"{weight.name} has NaN or infinity in it")
        lost = (found - own).norm() / own.norm().clamp_min(1e-30)
        if lost >= 1:
            raise self.refused(
                f"{weight.name} is no quantization of the model's: it differs by {lost:.2f} of the norm, zeros by 1. "
                "It may be of another model, or have its rows in another order"
            )
        return found

    def refused(self, why: str) -> QuantizationError:
        """The error that says why the file cannot be used."""
        return QuantizationError(f"Cannot use {self.path} as {self.name!r}: {why}.")

    def _unchanged(self) -> None:
        """Refuse files that are not those that were opened: what is kept of them goes by their contents then."""
        try:
            now = _states(self._files)
            same = now == self._states or _digest(now) == self.digest  # another machine's copy has other times
        except OSError:
            same = False
        if not same:
            raise self.refused("it was changed or removed since it was opened; start again with the file it should be")

    def _found(self, weight: Weight) -> Stored:
        stored = self.stored(weight)
        if stored is None:
            raise self.refused(f"it has no quantized {weight.name}")
        if stored.shape != weight.shape:
            raise self.refused(f"{weight.name} has the shape {stored.shape} there; expected {weight.shape}")
        return stored


def _states(files: Sequence[Path]) -> States:
    found = ((file, file.stat()) for file in files)
    return tuple((file, state.st_size, state.st_mtime_ns) for file, state in found)


@cache
def _digest(files: States) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
