"""What a problem of KV-cache precision does once its model is loaded: evaluate, find sensitivities, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moopt.backend import latency
from moopt.backend.evaluator import LanguageEvaluator
from moopt.backend.kv.pairs import KV16, Pair, Scheme
from moopt.backend.kv.profiles import profiled
from moopt.backend.kv.profiling import Profile
from moopt.backend.kv.run import packing, states
from moopt.backend.kv.shape import Shape
from moopt.backend.kv.stopwatch import decode_ms
from moopt.backend.metrics import Metric, of_finalist
from moopt.backend.quantizers import RTN
from moopt.backend.quiet import at_work
from moopt.backend.text import Text
from moopt.problem import Evaluation, Fidelity, Resources
from moopt.space import Config

FloatArray = npt.NDArray[np.float64]
LATENCY = "latency"


class Precision(Protocol):
    """What the workbench needs to know of a problem."""

    model: str
    scheme: Scheme
    text: Text
    context: int
    fidelity: Fidelity
    measurements: Mapping[str, Fidelity]
    profile_tokens: int
    is_profiled: bool
    sensitivity: Fidelity | None
    shape: Shape

    @property
    def objectives(self) -> Any:
        """The objectives."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The user's metrics."""

    @property
    def is_timed(self) -> bool:
        """Whether decode_ms is an objective."""

    @property
    def profiled_pairs(self) -> list[Pair]:
        """The pairs that a profile has."""

    def pairs(self, config: Config) -> list[Pair]:
        """The pair of every layer."""

    def options(self) -> list[list[list[Pair]]]:
        """The pairs of the layers that each option of each decision gives by itself, with 16 bits for all the rest."""

    def baselines(self) -> Mapping[str, Config]:
        """The candidates that every study begins with."""


class KVWorkbench:
    """A loaded model, ready for the jobs of one problem."""

    def __init__(self, problem: Precision, resources: Resources) -> None:
        self._problem = problem
        self.evaluator = LanguageEvaluator(
            problem.model, RTN(), 64, problem.text, problem.context, {}, resources, 0, {}, stream=False
        )
        for fidelity in (problem.fidelity, *(f for n, f in problem.measurements.items() if n != LATENCY)):
            self.evaluator.ids(fidelity)  # text that is too short is said before any work

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        """Measure a candidate on a batch; on held-out text everything there is to measure."""
        problem, evaluator = self._problem, self.evaluator
        pairs = problem.pairs(config)
        if fidelity.batch == LATENCY:
            return self._measured_latency(pairs)
        final = fidelity.batch == "held-out"
        with at_work(evaluator.candidate.device):
            found = evaluator.measure({}, fidelity, states(pairs, problem.scheme))
        names = {o.name for o in problem.objectives}
        values = {n: v for n, v in found.values.items() if final or n in names}
        attributes: dict[str, Any] = {"forward_tokens": found.tokens + self._profiled(config, fidelity)}
        attributes |= {n: v for n, v in found.values.items() if n not in values}
        searching = isinstance(fidelity.batch, int)
        if problem.is_timed and searching:
            values["decode_ms"] = self.predicted_ms(pairs)
        with packing(evaluator.candidate.model, pairs, problem.scheme) as model:
            for metric in problem.metrics:
                if metric.when == "every" and (final or searching):
                    values[metric.name] = metric.measure(model, evaluator.tokenizer)
                elif final:
                    values |= of_finalist(metric, model, evaluator.tokenizer, attributes)
        samples, variances = found.statistics(values.keys())
        return Evaluation(values, variances, samples, attributes)

    def _profiled(self, config: Config, fidelity: Fidelity) -> int:
        """The tokens of the profile that groups were made of: counted once, with the sensitivities or a baseline."""
        problem = self._problem
        counted = problem.sensitivity is not None and problem.sensitivity.batch != "one-layer"
        first = isinstance(fidelity.batch, int) and config == next(iter(problem.baselines().values()))
        return 3 * problem.profile_tokens if problem.is_profiled and first and not counted else 0

    def sensitivities(self, method: str, tokens: int) -> FloatArray:
        """What each option of each decision does to the loss by itself, [decisions, options]; inf where there is none.

        "fisher" and "output-error" sum what the profile has over the layers it changes, the expected KL divergence or
        the squared relative error of attention's output; "one-layer" measures the KL divergence of each option with
        all other layers at 16 bits.
        """
        options = self._problem.options()
        table = np.full((len(options), max(map(len, options))), np.inf)
        if method != "one-layer":
            profile = self.profile(tokens)
            losses = profile.fisher if method == "fisher" else profile.o_norm**2
            errors = {pair: losses[:, place] for place, pair in enumerate(profile.pairs)}

            def loss(pairs: list[Pair]) -> float:
                return float(sum(errors[pair][layer] for layer, pair in enumerate(pairs) if pair != KV16))
        else:
            fidelity = Fidelity(tokens, 0)

            def loss(pairs: list[Pair]) -> float:
                return max(0.0, self.evaluator.measure({}, fidelity, states(pairs, self._problem.scheme)).values["kl"])

        for row, column in ((r, c) for r, given in enumerate(options) for c in range(len(given))):
            table[row, column] = loss(options[row][column])
        return table

    def profile(self, tokens: int) -> Profile:
        """What every pair does to every layer, 16 bits included."""
        problem = self._problem
        self.evaluator.use({})
        return profiled(
            problem.model, problem.profiled_pairs, problem.scheme, problem.text, tokens, problem.context,
            loaded=(self.evaluator.candidate.model, self.evaluator.tokens),
        )  # fmt: skip

    def predicted_ms(self, pairs: Sequence[Pair]) -> float:
        """decode_ms as the sum over layers of what their pairs take in uniform caches."""
        return float(np.mean([self._uniform_ms[pairs[layer]] for layer in self._problem.shape.packable]))

    @cached_property
    def _uniform_ms(self) -> dict[Pair, float]:
        packable = set(self._problem.shape.packable)
        layers = range(len(self._problem.shape.windows))
        return {
            pair: self._timed([pair if layer in packable else KV16 for layer in layers]).median
            for pair in self._problem.profiled_pairs
        }

    def _measured_latency(self, pairs: list[Pair]) -> Evaluation:
        timing = self._timed(pairs)
        attributes = {
            "where": latency.where(self.evaluator.candidate.device, self._problem.context),
            "decode_ms spread": timing.spread, "decode_ms predicted": self.predicted_ms(pairs),
        }  # fmt: skip
        return Evaluation({"decode_ms": timing.median}, attributes=attributes)

    def _timed(self, pairs: list[Pair]) -> latency.Timing:
        """One more token after the problem's context, of random keys and values."""
        self.evaluator.use({})
        return decode_ms(self.evaluator.candidate.model, pairs, self._problem.scheme, self._problem.context)
