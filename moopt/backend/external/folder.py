"""What the folders of all tools have in common: safetensors files, and beside a matrix's codes what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from moopt.backend.external.contract import External
from moopt.backend.shards import Shards
from moopt.backend.weights import Weight


class Folder(External):
    """The quantized matrices of safetensors files.

    Args:
        name: What the option is called.
        path: Where it was found.
        files: The safetensors files.

    Raises:
        QuantizationError: a file is none, or was cut off.
    """

    def __init__(self, name: str, path: Path, files: Sequence[Path]) -> None:
        super().__init__(name, path, files)
        try:
            self._tensors = Shards(files)
        except ValueError as error:
            raise self.refused(str(error)) from error
        self._bytes: Counter[str] = Counter()
        for tensor, place in self._tensors.places.items():
            module, _, part = tensor.rpartition(".")
            self._bytes[module] += place.bytes if part != "bias" else 0

    def plain(self, parameter: str) -> Tensor | None:
        return self._tensors.get(parameter)

    def _matrix(self, weight: Weight, part: str) -> tuple[int, int] | None:
        """The shape of a matrix's codes, if they are there."""
        place = self._tensors.places.get(f"{weight.name}.{part}")
        if place is None:
            return None
        if len(place.shape) != 2:
            raise self.refused(f"{weight.name}.{part} has the shape {place.shape}; expected two dimensions")
        return place.shape[0], place.shape[1]

    def _part(self, weight: Weight, part: str) -> Tensor:
        """A tensor that has to be there."""
        if (found := self._tensors.get(f"{weight.name}.{part}")) is None:
            raise self.refused(f"{weight.name}.{part} is missing")
        return found

    def _inside(self, weight: Weight, group: Tensor, k: int, groups: int) -> Tensor:
        """The group of each input, [k], if all of them have scales."""
        if len(group) != k or not 0 <= int(group.min()) <= int(group.max()) < groups:
            raise self.refused(f"{weight.name} has {len(group)} inputs in groups beyond the {groups} that have scales")
        return group
