"""Options that are simulated, as no kernel runs them: see `moopt.backend.options` for the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from torch import Tensor

from moopt.backend.options import Option, Options
from moopt.backend.weights import Weight
from moopt.errors import QuantizationError


class Simulated(ABC):
    """A way to store matrices that runs by its dequantized values, dense, and is not written to a packed file.

    Its bytes are exact all the same. Picklable, and without weights.

    Attributes:
        name: What the option is called.
    """

    name: str

    @property
    @abstractmethod
    def key(self) -> str:
        """What identifies its values in the store, as part of a path."""

    @abstractmethod
    def bits(self, weight: Weight) -> int:
        """The bits of a code, scales left out."""

    @abstractmethod
    def bytes(self, weight: Weight) -> int:
        """What a matrix takes in a file, with all that belongs to it."""

    @abstractmethod
    def values(self, weight: Weight, original: Tensor) -> Tensor:
        """The matrix that the stored one stands for, n x k, float32, where the original is.

        Raises:
            QuantizationError: it cannot be read, or does not fit the model.
        """

    def has(self, weight: Weight) -> bool:
        """Whether a matrix can be stored so."""
        return True

    def check(self, parameters: Mapping[str, Tensor]) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse a model that it was not made for, by its parameters.

        Raises:
            QuantizationError: says what differs.
        """


def packable(options: Options, simulated: Collection[Option]) -> dict[str, Option]:
    """The options, all of them widths, with repairs or without: what the packed file has a place for and kernels run.

    Args:
        options: Of each weight by name.
        simulated: The options that are.

    Raises:
        QuantizationError: a matrix is simulated.
    """
    if others := [name for name, option in options.items() if option in simulated]:
        raise QuantizationError(
            f"{others[0]} is stored as {options[others[0]]!r}, which is simulated: no kernel runs it, and moopt's "
            "packed file has no place for it. Pick a candidate that has widths only, or leave it out of the options."
        )
    return dict(options)
