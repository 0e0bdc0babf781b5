"""Jobs and what comes of them: what a study hands to an executor. Runs one job; does not schedule."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moopt.errors import MooptError, ProblemError
from moopt.problem import (
    Evaluation,
    Fidelity,
    HasGradient,
    HasSensitivities,
    Problem,
    Resources,
    is_finite,
    known_values,
    plain,
)
from moopt.space import Config

JobKind = Literal["evaluate", "screen", "prune", "gradient", "sensitivity", "measure"]

SIZING: tuple[JobKind, ...] = ("evaluate", "screen")
"""The kinds that say what a candidate is worth: every objective and constraint."""


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        trial: The number of the trial it belongs to; -1 for none: the whole problem, or a candidate that is not
            evaluated.
        config: The candidate; empty for a sensitivity table.
        kind: "evaluate" a candidate, which completes its trial; "screen" it before, on less or on other data, or
            "prune" it: end its trial without values, for which nothing runs; "measure" a finished one on other data,
            "gradient" at a candidate, or the problem's "sensitivity" table. A trial's first job begins it.
        fidelity: On how much data, and which; for a sensitivity its `batch` names the method.
        exclusive: Wait until all other workers are idle, for latency.
        label: The baseline's name, if the candidate is one.
        note: JSON that the algorithm wants to see again when the log is replayed.
    """

    trial: int
    config: Config
    kind: JobKind = "evaluate"
    fidelity: Fidelity = field(default_factory=Fidelity)
    exclusive: bool = False
    label: str | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[int, str, Fidelity]:
        """What no other job of its study shares."""
        return self.trial, self.kind, self.fidelity

    @property
    def doing(self) -> str:
        """What who runs it does, in words."""
        return {
            "evaluate": f"evaluating trial {self.trial}",
            "screen": f"screening trial {self.trial}",
            "prune": f"pruning trial {self.trial}",
            "measure": f"measuring trial {self.trial} ({self.fidelity.batch})",
            "gradient": f"linearising around {'a mixture' if self.trial < 0 else f'trial {self.trial}'}",
            "sensitivity": "estimating sensitivities",
        }[self.kind]


@dataclass(frozen=True)
class Failure:
    """Why a job has no evaluation. `kind` is the exception's name, or "nonfinite", "contract", "killed", "timeout"."""

    kind: str
    message: str
    traceback: str = ""


Outcome = Evaluation | Failure


def set_up(load: Callable[[], Problem], resources: Resources) -> Problem | Failure:
    """A problem that is ready for jobs, where a worker runs; or why there is none."""
    try:
        with _in_one_process():
            problem = load()
            problem.setup(resources)
    except (Exception, SystemExit) as error:
        return _failure(error, "The problem cannot be set up: ")
    return problem


def perform(problem: Problem, job: Job) -> Outcome:
    """Run one job in this process. An exception becomes a `Failure`; Ctrl-C is not caught."""
    try:
        with _in_one_process():
            return _performed(problem, job)
    except (Exception, SystemExit) as error:
        return _failure(error)


def _performed(problem: Problem, job: Job) -> Outcome:
    match job.kind:
        case "evaluate" | "screen" | "measure":
            known = known_values(problem, job.config)
            return checked(problem, job, known, problem.evaluate(job.config, job.fidelity))
        case "gradient" if isinstance(problem, HasGradient):
            values, linear, curvature = problem.gradient(job.config, job.fidelity)
            return _tables(values, linear=linear, curvature=curvature)
        case "sensitivity" if isinstance(problem, HasSensitivities):
            table = problem.sensitivities(str(job.fidelity.batch), job.fidelity.tokens)
            if len(table) != (rows := int(problem.space.discrete.sum())):
                raise ProblemError(
                    f"{type(problem).__name__}.sensitivities gives {len(table)} rows; expected one for each of {rows} "
                    "discrete decisions."
                )
            return _tables({}, table=table)
    raise ProblemError(f"{type(problem).__name__} cannot do a job of kind {job.kind!r}.")


@contextmanager
def _in_one_process() -> Iterator[None]:
    """A child that the problem forks ends where the problem's code does: it is not a second one of us."""
    process, code = os.getpid(), None
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        raise
    finally:
        if os.getpid() != process:
            os._exit(code if isinstance(code, int) else code is not None)


def _failure(error: BaseException, where: str = "") -> Failure:
    kind = type(error).__name__
    said = f"{where}{error_text(error)}"
    return Failure(kind, said, traceback.format_exc())


def error_text(error: BaseException) -> str:
    """What an error says: ours as it is, any other with its kind, also one that cannot say."""
    try:
        text = str(error)
    except Exception:
        text = "it cannot say why"
    return text if isinstance(error, MooptError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _tables(values: Mapping[str, float], **tables: npt.ArrayLike) -> Evaluation:
    """Tables [decisions, options] as an outcome; inf marks an option that is not there."""
    found = {name: np.asarray(table, dtype=float) for name, table in tables.items()}
    for name, table in found.items():
        if np.isnan(table).any():
            raise ProblemError(f"The {name} table has NaN in it; expected numbers, or inf where there is no option.")
    return Evaluation(_floats(values), attributes={name: table.tolist() for name, table in found.items()})


def checked(problem: Problem, job: Job, known: Mapping[str, float], evaluation: object) -> Outcome:
    """The evaluation of a job's candidate, or a `Failure` that says how it breaks the contract."""
    if not isinstance(evaluation, Evaluation):
        return Failure("contract", f"evaluate returned {type(evaluation).__name__}, expected moopt.Evaluation.")
    values = evaluation.values
    if again := sorted(set(known) & set(values)):
        return Failure("contract", f"evaluate returned {', '.join(again)}, which known() already gives; leave it out.")
    expected = [o.name for o in problem.objectives if not o.known]
    expected += [c.name for c in problem.constraints if c.name not in known and c.name not in expected]
    if job.kind in SIZING and (missing := [name for name in expected if name not in values]):
        return Failure("contract", f"evaluate returned no {', '.join(missing)}; expected {', '.join(expected)}.")
    if bad := [f"{name} = {value}" for name, value in values.items() if not is_finite(value)]:
        return Failure("nonfinite", f"evaluate returned {', '.join(bad)}; expected finite numbers.")
    try:
        samples, attributes = plain([evaluation.samples, dict(evaluation.attributes)])
    except (TypeError, ValueError, RecursionError) as error:
        message = (
            f"evaluate returned samples or attributes that cannot be stored: {error}. Give plain numbers and text."
        )
        return Failure("contract", message)
    tokens = attributes.get("forward_tokens", 0)
    if not isinstance(tokens, (int, float)) or not is_finite(tokens) or tokens < 0:
        return Failure("contract", f"evaluate returned forward_tokens = {tokens!r}; expected a number from 0.")
    variances = evaluation.variances
    if bad := [*_bad(variances, _is_variance), *_bad(samples, _is_sample)]:
        wanted = "a finite number from 0 for a variance, a flat list of finite numbers for samples, each by name"
        return Failure("contract", f"evaluate returned variances or samples {', '.join(bad)}; expected {wanted}.")
    return Evaluation(_floats(values), None if variances is None else _floats(variances), samples, attributes)


def _bad(given: object, fits: Callable[[object], bool]) -> list[str]:
    """What of the numbers given by name does not fit, in words."""
    if not isinstance(given, Mapping | None):
        return [repr(given)]
    return [f"{name} = {_short(value)}" for name, value in (given or {}).items() if not fits(value)]


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _is_variance(value: object) -> bool:
    return is_finite(value) and float(value) >= 0  # type: ignore[arg-type]


def _is_sample(value: object) -> bool:
    return isinstance(value, list) and all(map(is_finite, value))


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
