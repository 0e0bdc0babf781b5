"""Jobs and what comes of them: what a study hands to an executor. Runs one job; does not schedule."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moopt.errors import MooptError, ProblemError
from moopt.problem import Evaluation, Fidelity, HasGradient, HasSensitivities, Problem, Resources
from moopt.space import Config

JobKind = Literal["evaluate", "gradient", "sensitivity", "measure"]


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        trial: The number of the trial it belongs to; -1 for the whole problem (a sensitivity table).
        config: The candidate; empty for a sensitivity table.
        kind: "evaluate" a new candidate, "measure" a finished one on other data, "gradient" at a candidate, or the
            problem's "sensitivity" table.
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
        problem = load()
        problem.setup(resources)
    except (Exception, SystemExit) as error:
        message = f"The problem cannot be set up: {error or type(error).__name__}"
        return Failure(type(error).__name__, message, traceback.format_exc())
    return problem


def perform(problem: Problem, job: Job) -> Outcome:
    """Run one job in this process. An exception becomes a `Failure`; Ctrl-C is not caught."""
    try:
        match job.kind:
            case "evaluate" | "measure":
                return checked(problem, job, problem.evaluate(job.config, job.fidelity))
            case "gradient" if isinstance(problem, HasGradient):
                values, linear, curvature = problem.gradient(job.config, job.fidelity)
                return _tables(values, linear=linear, curvature=curvature)
            case "sensitivity" if isinstance(problem, HasSensitivities):
                table = problem.sensitivities(str(job.fidelity.batch), job.fidelity.tokens)
                return _tables({}, table=table)
        raise ProblemError(f"{type(problem).__name__} cannot do a job of kind {job.kind!r}.")
    except MooptError as error:
        return Failure(type(error).__name__, str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:
        return Failure(type(error).__name__, f"{type(error).__name__}: {error}", traceback.format_exc())


def _tables(values: Mapping[str, float], **tables: npt.NDArray[np.float64]) -> Evaluation:
    """Tables [decisions, options] as an outcome; inf marks an option that is not there."""
    for name, table in tables.items():
        if np.isnan(table).any():
            raise ProblemError(f"The {name} table has NaN in it; expected numbers, or inf where there is no option.")
    return Evaluation(values, attributes={name: table.tolist() for name, table in tables.items()})


def checked(problem: Problem, job: Job, evaluation: object) -> Outcome:
    """The evaluation, or a `Failure` that says how it breaks the contract."""
    if not isinstance(evaluation, Evaluation):
        return Failure("contract", f"evaluate returned {type(evaluation).__name__}, expected moopt.Evaluation.")
    values = evaluation.values
    known = problem.known(job.config)
    if again := sorted(set(known) & set(values)):
        return Failure("contract", f"evaluate returned {', '.join(again)}, which known() already gives; leave it out.")
    if lacking := [o.name for o in problem.objectives if o.known and o.name not in known]:
        return Failure("contract", f"known gives no {', '.join(lacking)}, which the problem declares as known.")
    expected = [o.name for o in problem.objectives if not o.known]
    expected += [c.name for c in problem.constraints if c.name not in known and c.name not in expected]
    if job.kind == "evaluate" and (missing := [name for name in expected if name not in values]):
        return Failure("contract", f"evaluate returned no {', '.join(missing)}; expected {', '.join(expected)}.")
    for source, found in (("evaluate returned", values), ("known gives", known)):
        if bad := [f"{name} = {value}" for name, value in found.items() if not _finite(value)]:
            return Failure("nonfinite", f"{source} {', '.join(bad)}; expected finite numbers.")
    try:
        extra = json.loads(json.dumps([evaluation.samples, dict(evaluation.attributes)], default=_plain))
    except (TypeError, ValueError, RecursionError) as error:
        message = (
            f"evaluate returned samples or attributes that cannot be stored: {error}. Give plain numbers and text."
        )
        return Failure("contract", message)
    floats = {name: float(value) for name, value in values.items()}
    return Evaluation(floats, _floats(evaluation.variances), *extra)


def _plain(value: object) -> object:
    """What numpy has, as JSON has it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{value!r} is no JSON")


def _finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _floats(values: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if values is None else {name: float(value) for name, value in values.items()}
