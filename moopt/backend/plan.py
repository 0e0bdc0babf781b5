"""What a study will need: memory, disk and minutes, from a few seconds of measuring on this machine."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moopt.backend import footprint, memory, models, proxies, sensitivity
from moopt.backend.candidate import choose_device, room_for_variants
from moopt.backend.evaluator import LanguageEvaluator
from moopt.backend.options import Option
from moopt.backend.taps import AT_ONCE, SEQUENCE, Decision
from moopt.backend.workbench import Allocation, Workbench
from moopt.never_worse import VALIDATION
from moopt.problem import Fidelity, Resources

FINALISTS = 30
"""About how many points are measured again at the end: the front and the baselines."""
DOUBTED = 12
"""About how many of them are compared on validation text, because the search's text leaves them in doubt."""
BYTES_PER_TRIAL = 25_000
REPORT_BYTES = 6_000_000
BLOCKS = 4
"""Blocks that are quantized and tapped for a measurement; the others take as long."""


@dataclass(frozen=True)
class Plan:
    """The needs of a study on this machine.

    Attributes:
        peak_memory_gib: The most memory the process will hold.
        disk_gib: The model's cache, the storage and the report.
        minutes: From the start to the report.
        minutes_of: Where they go.
        evaluation_ms_per_token: What an evaluation costs, as measured just now.
        forward_tokens: What the search will cost.
        whole: Memory (GiB), disk and minutes with the model held whole; without minutes if it does not fit.
        streamed: The same with one block held at a time; empty if it cannot be streamed.
    """

    peak_memory_gib: float
    disk_gib: float
    minutes: float
    minutes_of: dict[str, float]
    evaluation_ms_per_token: float
    forward_tokens: int
    whole: dict[str, float]
    streamed: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class _Trial:
    """A little of everything, measured once on the loaded model."""

    def __init__(self, problem: Allocation, resources: Resources, stream: bool) -> None:
        self._problem = problem
        _forget_peak()
        began = time.perf_counter()
        self._bench = Workbench(problem, resources, stream)
        self.load_seconds = time.perf_counter() - began
        decisions = list(problem.decided.values())
        self._part = decisions[: max(1, len(decisions) * BLOCKS // max(_blocks(decisions), 1))]
        self.share = len(self._part) / len(decisions)
        began = time.perf_counter()
        for decision in self._part:
            self._bench.evaluator.candidate.prepare({w.name: decision.options for w in decision.weights})
        self.quantize_seconds = (time.perf_counter() - began) / self.share
        self.resident = _status("VmRSS")
        self.evaluation = self._evaluation_seconds() / self._tokens
        self.backward = self._backward_seconds() / (AT_ONCE * SEQUENCE) if problem.is_language else 0.0
        self.activations = max(0, _status("VmHWM") - self.resident)

    def variants(self) -> int:
        """Bytes of the variants that are still to come."""
        candidate = self._bench.evaluator.candidate
        if candidate.streams and candidate.device.type == "cpu":
            return 0  # they come and go with their blocks
        made = self._variant_bytes(self._part)
        return (
            min(self._variant_bytes(self._problem.decided.values()), room_for_variants(candidate.device) + made) - made
        )

    def on_disk(self) -> int:
        """Bytes of the matrices that the cache will keep: the originals, what they read, and every variant."""
        candidate = self._bench.evaluator.candidate
        weights = [w for d in self._problem.decided.values() for w in d.weights if not candidate.streams]
        originals = sum(w.count * candidate.dtype.itemsize for w in weights)
        moments = 0 if candidate.calibration is None else candidate.calibration.expected_bytes()
        return originals + moments + self._variant_bytes(self._problem.decided.values())

    def _variant_bytes(self, decisions: Iterable[Decision]) -> int:
        candidate = self._bench.evaluator.candidate
        return sum(candidate.variants.bytes(w, d.options) for d in decisions for w in d.weights)

    @property
    def _tokens(self) -> int:
        return min(self._problem.fidelity.tokens, 4 * self._problem.context)

    def _evaluation_seconds(self) -> float:
        """Of an evaluation, once the original has been observed on its batch."""
        evaluator, fidelity = self._bench.evaluator, Fidelity(self._tokens, 0)
        evaluator.measure(self._widths(), fidelity)
        return _seconds(lambda: evaluator.measure(self._widths(), fidelity))

    def _backward_seconds(self) -> float:
        """Of a backward pass with every decision tapped, extrapolated from passes with few and with more of them."""
        evaluator = self._bench.evaluator
        assert isinstance(evaluator, LanguageEvaluator)
        evaluator.use(self._widths())
        ids = evaluator.tokens.draws("search", AT_ONCE * SEQUENCE, SEQUENCE, seed=0).to(evaluator.candidate.device)
        few = self._part[: max(1, len(self._part) // BLOCKS)]

        def fisher(decisions: list[Decision]) -> float:
            head = evaluator.head()
            return _seconds(
                lambda: sensitivity.sampled_fisher(evaluator.candidate, decisions, head, ids, seed=0, by="columns")
            )

        fisher(few)  # the first pass of a process is slow
        some, more = fisher(few), fisher(self._part)
        tapped = max(0.0, more - some) / max(len(self._part) - len(few), 1)
        return some + tapped * (len(self._problem.decided) - len(few))

    def _widths(self) -> dict[str, Option]:
        return {w.name: d.options[-1] for d in self._part for w in d.weights}


def make_plan(
    problem: Any, trials: int, extra: Mapping[str, tuple[int, int]] | None = None, resources: Resources | None = None
) -> Plan:
    """Load the model, run a little of everything, and extrapolate; so for each mode that fits.

    Args:
        problem: A bit-allocation problem.
        trials: Trials in total.
        extra: What else the algorithm will do: the number of jobs of a kind, and the tokens of each.
        resources: The device and the threads.

    Raises:
        BackendError: the model fits neither whole nor streamed.
    """
    resources = resources or Resources()
    device = choose_device(resources.device)
    streams, needs = footprint.streams(problem, device), footprint.footprint(problem, device)
    taken = {False: needs.whole, True: needs.streamed}
    modes: dict[bool, dict[str, float]] = {}
    parts: dict[str, float] = {}
    evaluation = 0.0
    for stream in (not streams, streams):
        size = taken[stream]
        if size is None:
            modes[stream] = {}
        elif stream != streams and size > memory.free(device):
            modes[stream] = {"memory_gib": size / 2**30}
        else:
            trial = _Trial(problem, resources, stream)
            parts, evaluation = _seconds_of(problem, trial, trials, extra or {}), trial.evaluation
            modes[stream] = {
                "memory_gib": (trial.resident + trial.variants() + trial.activations) / 2**30,
                "disk_gib": _disk(problem, trial, trials) / 2**30,
                "minutes": sum(parts.values()) / 60,
            }
            del trial
            memory.give_back()
    return Plan(
        peak_memory_gib=modes[streams]["memory_gib"],
        disk_gib=modes[streams]["disk_gib"],
        minutes=modes[streams]["minutes"],
        minutes_of={name: value / 60 for name, value in parts.items()},
        evaluation_ms_per_token=evaluation * 1000,
        forward_tokens=_forward_tokens(problem, trials, extra or {}),
        whole=modes[False],
        streamed=modes[True],
    )


def _seconds_of(problem: Any, trial: _Trial, trials: int, extra: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Where the time goes."""
    gradients, gradient_tokens = extra.get("gradient", (0, 0))
    method: Fidelity | None = problem.sensitivity
    table = problem.forward_tokens("sensitivity", method) if method else 0
    backward = method is not None and proxies.named(str(method.batch)).language_only
    return {
        "loading and quantizing": trial.load_seconds + trial.quantize_seconds,
        "sensitivities": table * (trial.backward / 3 if backward else trial.evaluation),
        "candidates": trial.evaluation * problem.fidelity.tokens * (trials + 1),
        "gradients": (1.4 * trial.backward + 1.5 * trial.evaluation) * gradients * gradient_tokens,
        "validation": trial.evaluation * _validated(problem) * (min(trials, DOUBTED) + 1),
        "held-out figures": trial.evaluation * _held_out(problem) * (min(trials, FINALISTS) + 1),
    }


def _forward_tokens(problem: Any, trials: int, extra: Mapping[str, tuple[int, int]]) -> int:
    gradients, gradient_tokens = extra.get("gradient", (0, 0))
    tokens = trials * problem.fidelity.tokens + FINALISTS * _held_out(problem) + DOUBTED * _validated(problem)
    tokens += gradients * problem.forward_tokens("gradient", Fidelity(gradient_tokens))
    tokens += problem.forward_tokens("sensitivity", problem.sensitivity) if problem.sensitivity else 0
    return int(tokens + problem.calibration_tokens)


def _validated(problem: Any) -> int:
    """Tokens of a measurement on validation text."""
    return int(problem.measurements.get(VALIDATION, Fidelity()).tokens)


def _held_out(problem: Any) -> int:
    """Tokens of a finalist's measurements."""
    return sum(int(f.tokens) for purpose, f in problem.measurements.items() if purpose != VALIDATION)


def _disk(problem: Any, trial: _Trial, trials: int) -> int:
    """Bytes of the model, its cache, the storage and the report."""
    place = Path(models.location(problem.model))
    model = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else 0
    return BYTES_PER_TRIAL * trials + REPORT_BYTES + trial.on_disk() + model


def _blocks(decisions: list[Decision]) -> int:
    numbers = {w.block for d in decisions for w in d.weights if w.block is not None}
    return len(numbers) or math.ceil(len(decisions) / BLOCKS)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _status(entry: str) -> int:
    """A figure of this process in bytes: VmRSS is what it holds, VmHWM the most it held."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def _forget_peak() -> None:
    """Let VmHWM begin anew, where the system can."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
