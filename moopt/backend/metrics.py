"""A user's own objectives: a callable on the candidate model, or a command that is run on its folder."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from moopt.errors import MetricError
from moopt.leash import leashed, temporary_folder

logger = logging.getLogger("moopt")
When = Literal["every", "finalists"]


class Metric(Protocol):
    """A number that a candidate is measured by; the classes below are such, and so is any class that has all this."""

    @property
    def name(self) -> str:
        """What the objective is called."""

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which numbers are better."""

    @property
    def unit(self) -> str:
        """What it is measured in."""

    @property
    def when(self) -> When:
        """Whether it is an objective of the search, "every", or for "finalists"."""

    def measure(self, model: nn.Module, tokenizer: Any) -> float:
        """The number for a candidate.

        Raises:
            MetricError: there is none.
        """

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""


@dataclass(frozen=True)
class CallableMetric:
    """A function of the candidate model.

    Attributes:
        name: What the objective is called.
        function: Takes the model as it runs (a transformers model in evaluation mode); returns a number.
        direction: "min" or "max".
        unit: What it is measured in.
        when: "every" makes it an objective of the search; "finalists" measures only the front, at the end.
    """

    name: str
    function: Callable[[nn.Module], float]
    direction: Literal["min", "max"] = "min"
    unit: str = ""
    when: When = "every"

    def measure(self, model: nn.Module, tokenizer: Any) -> float:
        """The number for a candidate."""
        with torch.inference_mode():
            return _number(self.name, self.function(model))

    def describe(self) -> dict[str, str]:
        """JSON for a study's identity."""
        return {"name": self.name, "function": getattr(self.function, "__qualname__", repr(self.function))}


@dataclass(frozen=True)
class CommandMetric:
    """A command that is given the candidate's folder and prints a number.

    Attributes:
        name: What the objective is called.
        command: Such as "python my_eval.py {model}"; {model} becomes a folder that transformers loads.
        metric: "json:KEY" reads KEY of the last line of JSON printed ("json:a.b" goes deeper); "last" reads the last
            word printed.
        direction: "min" or "max".
        unit: What it is measured in.
        when: "every" makes it an objective of the search; "finalists" measures only the front, at the end.
        timeout: Seconds after which the command is stopped.
    """

    name: str
    command: str
    metric: str = "last"
    direction: Literal["min", "max"] = "min"
    unit: str = ""
    when: When = "every"
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if "{model}" not in self.command:
            raise MetricError(f"The command {self.command!r} lacks {{model}}, the place of the candidate's folder.")
        if self.metric != "last" and not self.metric.startswith("json:"):
            raise MetricError(f"Got the metric {self.metric!r}; expected 'json:KEY' or 'last'.")

    def measure(self, model: nn.Module, tokenizer: Any) -> float:
        """Save the candidate, run the command and read its number.

        Raises:
            MetricError: the command failed, ran too long or printed no such number; ends with what it printed.
        """
        with temporary_folder("moopt-candidate-") as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            words = [word.replace("{model}", folder) for word in shlex.split(self.command)]
            if shutil.which(words[0]) is None:
                raise MetricError(f"The command {words[0]!r} cannot be run: there is no such program.")
            try:
                with leashed(words) as process:
                    out, err = process.communicate(timeout=self.timeout)
            except subprocess.TimeoutExpired:
                raise MetricError(f"The command {self.command!r} ran longer than {self.timeout:g} s.") from None
        if process.returncode != 0:
            last = "\n".join((err or out).strip().splitlines()[-5:])
            raise MetricError(f"The command {self.command!r} ended with exit code {process.returncode}:\n{last}")
        return self._read(out)

    def describe(self) -> dict[str, str]:
        """JSON for a study's identity."""
        return {"name": self.name, "command": self.command, "metric": self.metric}

    def _read(self, printed: str) -> float:
        lines = [line for line in printed.splitlines() if line.strip()]
        if not lines:
            raise MetricError(f"The command {self.command!r} printed nothing; expected the metric {self.metric!r}.")
        if self.metric == "last":
            return _number(self.name, lines[-1].split()[-1])
        for line in (*reversed(lines), printed):
            try:
                found = json.loads(line)
                for key in self.metric.removeprefix("json:").split("."):
                    found = found[key]
                return _number(self.name, found)
            except (ValueError, KeyError, TypeError, IndexError):
                continue
        raise MetricError(f"The command {self.command!r} printed no {self.metric!r}; its last line is {lines[-1]!r}.")


def of_finalist(metric: Metric, model: Any, tokenizer: Any, attributes: dict[str, Any]) -> dict[str, float]:
    """What a metric finds, by its name; nothing where it fails, which is logged and noted in attributes."""
    try:
        return {metric.name: metric.measure(model, tokenizer)}
    except Exception as error:  # whatever a user's metric raises, the other figures are good
        why = str(error) if isinstance(error, MetricError) else f"{type(error).__name__}: {error}"
        logger.warning("%s was not measured: %s", metric.name, why)
        attributes[f"{metric.name} failed"] = why
        return {}


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MetricError(f"The metric {name!r} gave {value!r}; expected a number.") from None
    if not math.isfinite(number):
        raise MetricError(f"The metric {name!r} gave {number}; expected a finite number.")
    return number
