"""Trials, jobs and outcomes <-> what Optuna and JSON hold of them. Conversions only: storage.py reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from moopt.executors.base import WorkerState
from moopt.history import Event, Trial
from moopt.history import TrialState as State
from moopt.jobs import Failure, Job, Outcome
from moopt.problem import Evaluation, Fidelity, Objective, is_finite
from moopt.space import Float, Integer, Space

STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
}


RUNG = "moopt:rung:"
"""How the attributes of a trial begin that hold its screens."""


class Distributions(dict[str, BaseDistribution]):
    """The distributions of a space. All trials share them: Optuna copies what it stores, at 10 ms for 120 variables."""

    def __deepcopy__(self, memo: object) -> Distributions:
        return self


class Parameters(dict[str, Any]):
    """The parameters of a trial. Their values never change, so that the deep copy that Optuna makes need not be one."""

    def __deepcopy__(self, memo: object) -> Parameters:
        return Parameters(self)


def distributions(space: Space) -> Distributions:
    """The Optuna distribution of each variable: lists as categorical with their true values."""
    found = Distributions()
    for name, variable in space.items():
        if isinstance(variable, Integer):
            found[name] = IntDistribution(int(variable.lower), int(variable.upper))
        elif isinstance(variable, Float):
            found[name] = FloatDistribution(variable.lower, variable.upper)
        else:
            found[name] = CategoricalDistribution(variable.values)  # type: ignore[attr-defined]
    return found


def stored_trial(frozen: FrozenTrial, objectives: list[Objective]) -> tuple[Trial, list[Event]]:
    """A trial as Optuna has it -> ours, and the events of its log: issued, and told once it is finished."""
    attributes, config = frozen.user_attrs, dict(frozen.params)
    issue, result = attributes.get("moopt:issue"), attributes.get("moopt:result")
    trial = Trial(frozen.number, config, STATES[frozen.state], **attributes.get("moopt:tried", {}))
    events = [event for key in attributes if key.startswith(RUNG) for event in stored_side(attributes[key], config)]
    if "moopt:pruned" in attributes:
        trial.state = "pruned"  # also where a crash came before Optuna's own state
        events += stored_side(attributes["moopt:pruned"], config)
    if issue is None:
        trial.screened = True
        return trial, events
    job = stored_job(issue, config)
    trial.label = job.label
    events.append(Event(issue["seq"], job))
    if result is not None and frozen.state.is_finished():
        end = told(job, result)
        trial.seconds, trial.tokens = end.seconds, end.tokens
        trial.ended = frozen.datetime_complete and frozen.datetime_complete.astimezone()
        if isinstance(end.outcome, Evaluation):
            values = {**frozen.user_attrs["moopt:known"], **end.outcome.values}
            values |= dict(zip((o.name for o in objectives), frozen.values or (), strict=False))
            if bad := [f"{o.name} = {values.get(o.name)}" for o in objectives if not is_finite(values.get(o.name))]:
                end = replace(end, outcome=Failure("nonfinite", f"The storage has {', '.join(bad)}, no finite number."))
                trial.state = "failed"
        events.append(end)
        if isinstance(end.outcome, Evaluation):
            trial.evaluation, trial.values, trial.violations = end.outcome, values, dict(frozen.constraints)
        else:
            trial.failure = end.outcome
    return trial, events


def stored_side(entry: Mapping[str, Any], config: dict[str, Any]) -> list[Event]:
    """The events of a job that is no trial's evaluation, from its entry: issued, and told once that is stored."""
    job = stored_job(entry, config)
    issued = Event(entry["seq"], job)
    return [issued, told(job, entry["result"])] if "result" in entry else [issued]


def told(job: Job, result: Mapping[str, Any]) -> Event:
    """What came of a job, from its stored result."""
    return Event(result["seq"], job, stored_outcome(result), result["seconds"], result["tokens"])


def job_entry(job: Job) -> dict[str, Any]:
    """A job -> JSON, without its configuration where that is in a trial's parameters."""
    entry = {"trial": job.trial, "kind": job.kind, "tokens": job.fidelity.tokens, "batch": job.fidelity.batch}
    own = dict(job.config) if job.trial < 0 else {}
    optional = {"exclusive": job.exclusive, "label": job.label, "note": dict(job.note), "config": own}
    return entry | {key: value for key, value in optional.items() if value}


def stored_job(entry: Mapping[str, Any], config: dict[str, Any]) -> Job:
    """The job of an entry, given its trial's configuration; the inverse of `job_entry`."""
    return Job(
        entry["trial"], entry.get("config", config), entry["kind"], Fidelity(entry["tokens"], entry["batch"]),
        entry.get("exclusive", False), entry.get("label"), entry.get("note", {}),
    )  # fmt: skip


def worker_entry(worker: WorkerState) -> dict[str, Any]:
    """What a worker does -> JSON."""
    return {**asdict(worker), "job": None if worker.job is None else job_entry(worker.job)}


def stored_worker(entry: Mapping[str, Any]) -> WorkerState:
    """The worker of an entry; the inverse of `worker_entry`, but for the configuration of its job."""
    return WorkerState(**{**entry, "job": entry["job"] and stored_job(entry["job"], {})})


def outcome_entry(outcome: Outcome) -> dict[str, Any]:
    """An evaluation or a failure -> JSON."""
    if isinstance(outcome, Failure):
        return {"failure": {"kind": outcome.kind, "message": outcome.message, "traceback": outcome.traceback}}
    optional = {"variances": outcome.variances, "samples": outcome.samples, "attributes": outcome.attributes}
    filled = {key: value for key, value in optional.items() if value}
    return {"values": dict(outcome.values), **filled}


def stored_outcome(entry: Mapping[str, Any]) -> Outcome:
    """The evaluation or the failure of an entry; the inverse of `outcome_entry`."""
    if "failure" in entry:
        return Failure(**entry["failure"])
    return Evaluation(entry["values"], entry.get("variances"), entry.get("samples"), entry.get("attributes", {}))
