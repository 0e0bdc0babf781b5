"""What a bit-allocation problem does once its model is loaded: evaluate, find sensitivities, take gradients."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from moopt.backend import memory, proxies, sensitivity, weights
from moopt.backend.evaluator import EncoderEvaluator, Evaluator, LanguageEvaluator
from moopt.backend.grid import Grid, find_grid
from moopt.backend.latency import where
from moopt.backend.metrics import Metric, of_finalist
from moopt.backend.options import Option
from moopt.backend.proxies import Request
from moopt.backend.quantizers import Quantizer
from moopt.backend.quiet import at_work
from moopt.backend.simulated import Simulated, packable
from moopt.backend.stopwatch import Stopwatch
from moopt.backend.taps import SEQUENCE, Decision
from moopt.backend.text import Text
from moopt.never_worse import VALIDATION
from moopt.problem import Evaluation, Fidelity, Objective, Resources
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
logger = logging.getLogger("moopt")
LATENCY = "latency"
"""The purpose of measuring decode_ms and prefill_ms on whole models."""


class Allocation(Protocol):
    """What the workbench needs to know of a problem."""

    model: str
    quantizer: Quantizer
    calibration_tokens: int
    stream: bool | Literal["auto"]
    group_size: int
    text: Text
    context: int
    draw: int
    fidelity: Fidelity
    measurements: Mapping[str, Fidelity]
    fixed: dict[str, Option]
    simulated: dict[Option, Simulated]
    decided: dict[str, Decision]
    is_language: bool
    inventory: weights.Inventory

    @property
    def objectives(self) -> Any:
        """The objectives."""

    @property
    def is_timed(self) -> bool:
        """Whether latency is an objective."""

    @property
    def search_metrics(self) -> tuple[Metric, ...]:
        """The user's metrics of every candidate."""

    @property
    def finalist_metrics(self) -> tuple[Metric, ...]:
        """The user's metrics of the front."""

    def widths(self, config: Config) -> dict[str, Option]:
        """The option of every decided matrix."""

    def baselines(self) -> Mapping[str, Config]:
        """The candidates that every study begins with."""


def request(problem: Allocation, tokens: int) -> Request:
    """What a problem asks of a proxy that may use so many tokens."""
    return Request(tuple(problem.decided.values()), tokens, problem.fidelity.tokens, problem.draw)


class Workbench:
    """A loaded model, ready for the jobs of one problem."""

    def __init__(self, problem: Allocation, resources: Resources, stream: bool) -> None:
        self._problem = problem
        kind: type[Evaluator] = LanguageEvaluator if problem.is_language else EncoderEvaluator
        self.evaluator = kind(
            problem.model,
            problem.quantizer,
            problem.group_size,
            problem.text,
            problem.context,
            problem.fixed,
            resources,
            problem.calibration_tokens,
            problem.simulated,
            stream,
        )
        texts = [f for purpose, f in problem.measurements.items() if purpose != LATENCY]
        for fidelity in (problem.fidelity, *texts):
            self.evaluator.ids(fidelity)  # text that is too short is said before any work
        self._warn()

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        """Measure a candidate on a batch; on held-out text everything there is to measure, finalists' metrics too.

        On validation text only what depends on text: the search's values of the others hold there as well.
        """
        if fidelity.batch == LATENCY:
            return self._measured_latency(config)
        problem, evaluator = self._problem, self.evaluator
        validates = fidelity.batch == VALIDATION
        final = isinstance(fidelity.batch, str) and not validates
        with at_work(evaluator.candidate.device):
            found = evaluator.measure(problem.widths(config), fidelity)
        memory.give_back()
        objectives: list[Objective] = list(problem.objectives)
        wanted = [o.name for o in objectives if o.name in found.values] if not final else list(found.values)
        values = {name: found.values[name] for name in wanted}
        if problem.is_timed and not validates:
            predicted = self.stopwatch.predict(packable(self._all_options(config), self._problem.simulated))
            values |= {o.name: predicted[o.name] for o in objectives if o.name in predicted}
        first = isinstance(fidelity.batch, int) and config == next(iter(problem.baselines().values()), None)
        attributes: dict[str, Any] = {  # the calibration is counted with the first baseline, which every study has once
            "forward_tokens": found.tokens + problem.calibration_tokens * first,
            **{n: v for n, v in found.values.items() if n not in values},
        }
        if simulated := self._simulated(config):
            attributes["simulated"] = simulated
        for metric in problem.search_metrics if not validates else ():
            values[metric.name] = metric.measure(evaluator.candidate.model, evaluator.tokenizer)
        for metric in problem.finalist_metrics if final else ():
            values |= of_finalist(metric, evaluator.candidate.model, evaluator.tokenizer, attributes)
        samples, variances = found.statistics(wanted)
        return Evaluation(values, variances, samples, attributes)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """What times candidates."""
        problem = self._problem
        symmetric = problem.quantizer.symmetric
        return Stopwatch(
            problem.model, self.evaluator, problem.inventory, problem.group_size, symmetric, problem.context
        )

    def _measured_latency(self, config: Config) -> Evaluation:
        """decode_ms and prefill_ms of the whole packed model, and beside them what the table predicts."""
        widths = packable(self._all_options(config), self._problem.simulated)
        measured, predicted = self.stopwatch.measure(widths), self.stopwatch.predict(widths)
        memory.give_back()
        attributes: dict[str, Any] = {"where": where(self.evaluator.candidate.device, self._problem.context)}
        for name, timing in measured.items():
            attributes |= {f"{name} spread": timing.spread, f"{name} predicted": predicted[name]}
        return Evaluation({name: timing.median for name, timing in measured.items()}, attributes=attributes)

    def _all_options(self, config: Config) -> dict[str, Option]:
        return {**self._problem.fixed, **self._problem.widths(config)}

    def _simulated(self, config: Config) -> list[str]:
        """What no kernel runs of a candidate, by name: options, and the quantizer where it is its codes."""
        how, known = self._problem.quantizer, self._problem.simulated
        options = self._all_options(config).values()
        return sorted({str(o) if o in known else how.name for o in options if o in known or how.simulated})

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """The table of a proxy, [decisions, options]."""
        with at_work(self.evaluator.candidate.device):
            table = proxies.table(method, request(self._problem, tokens), self.evaluator)
        memory.give_back()
        return table

    def gradient(self, config: Config, fidelity: Fidelity) -> tuple[Mapping[str, float], FloatArray, FloatArray]:
        """KL, its linear and its curvature term around a candidate, on draws numbered by the fidelity's batch."""
        evaluator = self.evaluator
        assert isinstance(evaluator, LanguageEvaluator)
        decisions = list(self._problem.decided.values())
        if evaluator.candidate.streams:  # nothing can be made while a block is half way through a backward pass
            evaluator.candidate.prepare({w.name: d.options for d in decisions for w in d.weights})
        evaluator.use(self._problem.widths(config))
        number = int(fidelity.batch)
        ids = evaluator.tokens.draws("search", fidelity.tokens, SEQUENCE, seed=1000 * (1 + self._problem.draw) + number)
        reference = evaluator.observed(ids.to(evaluator.candidate.device))
        memory.give_back()
        with at_work(evaluator.candidate.device):
            kl, linear, curvature = sensitivity.gradient(
                evaluator.candidate, decisions, evaluator.head(), reference, seed=number
            )
        memory.give_back()
        for row, decision in enumerate(decisions):  # an embedding has no slopes: it stays as it is
            if decision.weights[0].kind != "linear":
                width = config[list(self._problem.decided)[row]]
                curvature[row] = [0.0 if b == width else np.inf for b in decision.options] + [np.inf] * (
                    curvature.shape[1] - len(decision.options)
                )
        return {"kl": kl}, linear, curvature

    def grid(self) -> Grid | None:
        """The grid that every linear weight lies on, if there is one."""
        candidate = self.evaluator.candidate
        found = [find_grid(candidate.stored(w.name)) for w in candidate.weights if w.kind == "linear"]
        if any(grid is None for grid in found):
            return None
        grids = [grid for grid in found if grid is not None]
        return Grid(max(g.bits for g in grids), min(g.group_size for g in grids))

    def _warn(self) -> None:
        problem = self._problem
        if grid := self.grid():
            logger.warning(
                "The weights of %s already lie on a low-bit grid: %s is lossless (with an unrounded minimum, as in "
                "GGUF's Q4_1). Figures at that group size, or at fractions of it, say little about methods.",
                problem.model,
                grid,
            )
        if experts := weights.expert_parameters(problem.inventory):
            logger.warning("%d parameters of %s are stacked experts and stay at 16 bits.", experts, problem.model)
