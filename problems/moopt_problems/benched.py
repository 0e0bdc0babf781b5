"""What problems over models share: their arguments, and a workbench that is opened where it is needed, never sent."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from moopt.backend import models
from moopt.problem import Problem, Resources

Bench = TypeVar("Bench")


class Benched(Problem, Generic[Bench]):
    """A problem whose work is done by a workbench that holds the models."""

    _arguments: dict[str, Any]
    _bench: Bench | None = None

    @abstractmethod
    def _opened(self, resources: Resources) -> Bench:
        """A workbench with the models loaded."""

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments: what builds an equal problem elsewhere."""
        return dict(self._arguments)

    def licences(self) -> dict[str, str]:
        """The licences of the models that candidates are made of, by name; empty where its files name none."""
        made_of = [getattr(self, "base", None), *getattr(self, "members", {}).values()]
        made_of += [*getattr(self, "models", {}).values(), getattr(self, "model", None)]
        return {name: models.licence(name) for name in dict.fromkeys(made_of) if name}

    @property
    def held_out_tokens(self) -> int:
        """The tokens that finalists are measured on, or without held-out text those of an evaluation."""
        return self.measurements.get("held-out", self.fidelity).tokens

    def setup(self, resources: Resources) -> None:
        self._bench = self._opened(resources)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bench": None}

    @property
    def _ready(self) -> Bench:
        """The workbench, opened now if it was not."""
        if self._bench is None:
            self.setup(Resources())
        assert self._bench is not None
        return self._bench
