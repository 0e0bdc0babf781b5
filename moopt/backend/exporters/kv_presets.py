"""How keys and values are cached, as the programs that cache them read it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from moopt.backend.exporters.shipment import written
from moopt.backend.kv import Pair, Preset, Scheme
from moopt.backend.kv.exports import kvtuner
from moopt.errors import BackendError, ExportError
from moopt.exporting import Exporter, Written
from moopt.problem import Problem
from moopt.space import Config


@runtime_checkable
class Caches(Protocol):
    """A problem whose candidates are pairs of widths for keys and values."""

    model: str
    scheme: Scheme

    def pairs(self, config: Config) -> list[Pair]:
        """The pair of every layer."""


def preset(problem: Problem, config: Config, format: str) -> Preset:
    """A candidate's preset.

    Raises:
        ExportError: the problem decides none.
    """
    if not isinstance(problem, Caches):
        raise ExportError(
            f"{format} says how keys and values are cached; {type(problem).__name__} does not decide that."
        )
    return Preset(tuple(problem.pairs(config)), problem.scheme)


class KVPreset(Exporter):
    """moopt's own preset, for `moopt.backend.kv.load_preset` and `packed_cache`."""

    name = "kv-preset"
    about = "moopt's packed cache of keys and values"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        preset(problem, config, self.name).save(folder / "kv-preset.json")
        return _written(problem)


class KVTuner(Exporter):
    """The YAML that KVTuner reads."""

    name = "kvtuner"
    about = "KVTuner's cache"

    def write(self, problem: Problem, config: Config, folder: Path) -> Written:
        try:
            text = kvtuner(preset(problem, config, self.name))
        except BackendError as error:
            raise ExportError(str(error)) from error
        (folder / "kvtuner.yaml").write_text(text)
        return _written(problem)


def _written(problem: Problem) -> Written:
    assert isinstance(problem, Caches)
    return written(0, [], [], [problem.model])
