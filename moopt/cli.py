"""The command line: what Python can do, too, in one program.

Exit codes: 0 done, 1 the study failed, 2 bad usage or input, 3 the storage is in use, 130 interrupted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moopt import __version__
from moopt import cli_options as given
from moopt.cli_comparison import compare
from moopt.cli_dashboard import dashboard
from moopt.cli_errors import RunFailed, guarded, say
from moopt.cli_exports import bundle, export, gate, reproduce, verify
from moopt.cli_output import front_points, print_front, print_json, print_needs, print_run, print_table, summary
from moopt.cli_report import report
from moopt.errors import MooptError, StorageInUse, StudyError

if TYPE_CHECKING:
    from moopt.history import History
    from moopt.study import Study

app = typer.Typer(
    help="Find the Pareto front of compressed models: how small, how fast, how accurate.",
    epilog="Exit codes: 0 done, 1 the study failed, 2 bad usage or input, 3 the storage is in use, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command; without arguments one that needs some shows its help."""
    made = guarded(function)
    first = next(iter(inspect.signature(function).parameters.values()))
    app.command(no_args_is_help=first.default is first.empty)(made)
    return made


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Find the Pareto front of compressed models: how small, how fast, how accurate."""
    if version:
        print(f"moopt {__version__}")
        raise typer.Exit


@command
def run(
    target: given.Target,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials in total, those of earlier runs included. Left out: 100, or no other limit."),
    ] = None,
    seconds: given.Seconds = None,
    tokens: given.Tokens = None,
    hypervolume: given.Hypervolume = None,
    patience: given.Patience = None,
    model: given.Model = None,
    storage: Annotated[str | None, typer.Option(help="A file or a database URL; made when it is missing.")] = None,
    algorithm: given.Algorithm = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same trials.")] = None,
    budgets: given.Budgets = None,
    prefer: given.Prefer = None,
    weights: given.Weights = None,
    workers: Annotated[int, typer.Option(min=1, help="How many candidates are evaluated at a time.")] = 1,
    executor: Annotated[
        str | None, typer.Option(help="Where: inline, processes, ray, or a plug-in. Left out: processes for workers.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds an evaluation may take before it is stopped and failed.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed evaluation is tried on a fresh worker.")] = 1,
    changes: given.Changes = None,
    score: given.Score = None,
    metric: given.Metric = "json:score",
    direction: given.Direction = "max",
    when: given.When = "finalists",
    log_json: Annotated[
        bool, typer.Option("--log-json", help="JSON lines on standard error in place of the live display.")
    ] = False,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Search for the Pareto front. Run it again and it goes on where it stopped.

    Examples:

      moopt run bit-allocation --model smollm2-135m --trials 120 --storage bits.journal

      moopt run my_study.py --trials 200 --workers 4

      moopt run my_study.py --seconds 3600 --patience 50

      moopt run my_study.py --prefer "size_mb <= 80" --weight kl=2 --weight size_mb=1

      moopt run bit-allocation --model smollm2-135m --budget size_mb=80 --tokens 300000

      moopt run my_study.py:study --set bits=2,4,8 --set group_size=32

      moopt run my_study.py --eval "python my_eval.py {model}" --metric json:score
    """
    from moopt.cli_targets import preferred, with_overrides
    from moopt.progress import Display

    study = _study(target, changes, budgets, model=model, storage=storage, algorithm=algorithm, seed=seed)
    if score is not None:
        study = with_overrides(study, {"metrics": _metrics(study, score, metric, direction, when)})
    if preference := preferred(study.problem, prefer or (), weights or ()):
        study = with_overrides(study, {"preference": preference})
    limits = {"seconds": seconds, "tokens": tokens, "hypervolume": hypervolume, "patience": patience}
    if trials is None and all(limit is None for limit in limits.values()):
        trials = 100
    if not log_json and (suggestion := study.settle(trials)):
        say(f"auto takes {suggestion.name}: {suggestion.reason}.")
    with nullcontext() if log_json else Display(trials) as watch:
        _run(study, trials, watch, workers=workers, executor=executor, timeout=timeout, retries=retries, **limits)
    if as_json:
        print_json({**summary(study.history), **front_points(study.history), "storage": study.storage.shown})
    else:
        print_front(study.history)
    if study.reached is not None and not log_json:
        say(f"The search ended: {study.reached}.")
    if study.stopped:
        raise KeyboardInterrupt
    if as_json:
        return
    if study.storage.location is None:
        say("The study was kept in memory alone; --storage FILE keeps it.")
    else:
        say(f"Stored in {study.storage.shown}. For a page to look at: moopt report {study.storage.shown}")


@command
def plan(
    target: given.Target, trials: given.Trials = 100, model: given.Model = None, algorithm: given.Algorithm = None,
    budgets: given.Budgets = None, changes: given.Changes = None, as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:  # fmt: skip
    """What a run will need, before anything runs: memory, disk and minutes, and how each was found.

    Examples:

      moopt plan bit-allocation --model smollm2-135m --trials 120

      moopt plan my_study.py --model ./my-model --json

      moopt plan bit-allocation --model smollm2-135m --budget size_mb=80,88
    """
    study = _study(target, changes, budgets, model=model, algorithm=algorithm)
    study.algorithm.start(study.problem, study.seed)  # what it cannot search, such as a budget, is refused here too
    planner = getattr(study.problem, "plan", None)
    if planner is None:
        raise StudyError(
            f"{type(study.problem).__name__} has no method plan(trials, extra, resources), so there is nothing to tell."
        )
    found = planner(trials, study.algorithm.extra_jobs(study.problem, trials), study.resources)
    needs: Mapping[str, Any] = found if isinstance(found, Mapping) else found.as_dict()
    if as_json:
        print_json({"study": study.name, "trials": trials, "needs": needs})
        return
    print_needs(needs, f"{study.name}, {trials} trials")


@command
def front(
    storage: given.Stored,
    name: given.Named = None,
    csv: Annotated[Path | None, typer.Option(metavar="PATH", help="Write the front to a CSV file as well.")] = None,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """The best trade-offs found: the feasible trials that no other trial beats in everything.

    Examples:

      moopt front bits.journal

      moopt front bits.journal --json | jq '.front[0].config'
    """
    history = _history(storage, name)
    if csv is not None:
        from moopt.report import front_csv

        front_csv(history, csv)
    if as_json:
        print_json({"study": history.name, **front_points(history)})
    else:
        print_front(history)


@command
def importance(
    storage: given.Stored, name: given.Named = None, as_json: given.AsJson = False, debug: given.Debug = False
) -> None:
    """Which decisions matter: how far each moves what is measured, around the front, as a model of the trials expects.

    Examples:

      moopt importance bits.journal

      moopt importance bits.journal --json | jq '.decisions[0]'
    """
    from moopt.views.importance import importance_data

    history = _history(storage, name)
    table = importance_data(history)
    if as_json:
        print_json({"study": history.name, "decisions": table.to_dict("records")})
    else:
        print_table(list(table.columns), list(table.itertuples(index=False)), history.name)


for handed_on in (export, gate, verify, bundle, reproduce):
    command(handed_on)


command(report)
command(compare)
command(dashboard)


@command
def status(
    storage: given.Stored, name: given.Named = None, as_json: given.AsJson = False, debug: given.Debug = False
) -> None:
    """How the studies of a storage stand, also while they run.

    Examples:

      moopt status bits.journal

      moopt status bits.journal --json | jq '.studies[0].trials'
    """
    from moopt.storage import Storage

    opened = Storage(storage)
    opened.open()
    names = [name] if name is not None else opened.studies()
    if not names:
        raise StudyError(f"{opened.shown} has no moopt study in it.")
    histories = [_history(storage, each) for each in names]
    found = [{**summary(history), "runs": opened.runs(history)} for history in histories]
    if as_json:
        print_json({"storage": opened.shown, "studies": found})
        return
    columns = ("study", "algorithm", "seed", "complete", "failed", "running", "front", "hypervolume", "forward tokens")
    rows = [
        (s["study"], s["algorithm"], s["seed"], *s["trials"].values(), s["front_size"], s["hypervolume"], s["tokens"])
        for s in found
    ]
    print_table(columns, rows, opened.shown)
    for each in found:
        print_run(each, each["runs"])


@command
def proxies(
    target: given.Proxied = None, bench: given.Measured = None, only: given.Only = None, tokens: given.Text = None,
    changes: given.Changes = None, as_json: given.AsJson = False, debug: given.Debug = False,
) -> None:  # fmt: skip
    """How well each sensitivity proxy ranks measured bit allocations, and what it costs. At once the second time.

    Examples:

      moopt proxies

      moopt proxies --only fisher,weight-error --tokens 4096

      moopt proxies my_study.py --bench my-bench.parquet --json
    """
    from moopt import cli_proxies

    problem, known = cli_proxies.subject(target, bench, changes or ())
    rows = cli_proxies.ranked(problem, known, cli_proxies.asked(problem, only), tokens, say)
    if as_json:
        print_json({"allocations": len(known.losses), "proxies": cli_proxies.records(rows)})
        return
    print_table(*cli_proxies.cells(rows), f"{len(known.losses)} allocations, Spearman with 95% intervals")


@command
def bench(
    problems: given.Problems,
    algorithms: given.Algorithms = "nsga2,optuna-tpe",
    evaluations: Annotated[int, typer.Option(min=4, help="How many each search may spend.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="How many searches of each algorithm on each problem.")] = 11,
    against: Annotated[str | None, typer.Option(help="The algorithm the others are tested against.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Searches at a time, each a process with one thread.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where searches, tables and plots go.")] = Path("bench"),
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Compare algorithms on problems, over many seeds. Run it again and it goes on where it stopped.

    Examples:

      moopt bench dtlz2@variables=6,objectives=2 --algorithms qnehvi,optuna-gp --evaluations 60

      moopt bench bit-toy@scale=log digits-bits --algorithms nsga2,random --against random --workers 2
    """
    from functools import partial

    from moopt.bench import command
    from moopt.bench.races import Race
    from moopt.bench.table import shown
    from moopt.cli_targets import problem

    names = algorithms.split(",")
    races = [Race(target, partial(problem, target), evaluations, names, range(seeds)) for target in problems]
    table = command.run(races, out, workers, against, say)
    if as_json:
        print_json({"table": command.records(table), "folder": str(out)})
        return
    cells = shown(table)
    print_table(list(cells.columns), list(cells.itertuples(index=False)), f"{evaluations} evaluations, {seeds} seeds")
    print(f"Plots and tables are in {out}; a share with an asterisk is of the best that anyone found.")


def main() -> None:
    """The entry point of the `moopt` command."""
    app(prog_name="moopt")


def _study(target: str, changes: Sequence[str] | None, budgets: Sequence[str] | None = None, **options: Any) -> Study:
    """As `chosen`, imported when it is needed, with budgets."""
    from moopt import cli_targets

    found = cli_targets.chosen(target, changes, **options)
    return cli_targets.with_overrides(found, {"budgets": cli_targets.budgets(budgets)}) if budgets else found


def _metrics(study: Study, command: str, metric: str, direction: given.Direction, when: given.When) -> tuple[Any, ...]:
    """The problem's own metrics and the user's command."""
    from moopt.backend.metrics import CommandMetric

    name = metric.removeprefix("json:").rpartition(".")[2] if metric != "last" else "score"
    added = CommandMetric(name=name, command=command, metric=metric, direction=direction, when=when)
    arguments: Mapping[str, Any] = getattr(study.problem, "arguments", dict)()
    return (*arguments.get("metrics", ()), added)


def _run(study: Study, trials: int | None, watch: Any, **options: Any) -> None:
    try:
        study.run(trials, watch=watch, **options)
    except StorageInUse:
        raise
    except MooptError as error:
        if study.began:
            raise RunFailed(str(error)) from error
        raise
    failed = [trial for trial in study.history.trials if trial.state == "failed"]
    if len(failed) == len(study.history.trials) and failed[0].failure is not None:
        raise RunFailed(f"All {len(failed)} trials failed; the first: {failed[0].failure.message}")


def _history(storage: str, name: str | None) -> History:
    from moopt.study import load_history

    return load_history(storage, name)


if __name__ == "__main__":
    main()
