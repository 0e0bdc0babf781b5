"""What a study will need: memory, disk and minutes, from a few seconds of measuring on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from moopt.problem import Resources


@dataclass(frozen=True)
class Plan:
    """The needs of a study."""

    memory_gb: float

    def as_dict(self) -> dict[str, Any]:
        """Plain."""
        return asdict(self)


def make_plan(problem: Any, trials: int, resources: Resources) -> Plan:
    """Measure and extrapolate."""
    raise NotImplementedError
