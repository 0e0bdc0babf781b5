"""The arguments and options of commands: how they are written and what their help says. Does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="FILE_OR_MODULE[:NAME]",
        help="NAME is a moopt.Study, a problem, a problem class, or a function without arguments that returns one. "
        "Left out: the only study of the file. Or the name of an installed problem, such as bit-allocation.",
    ),
]
Stored = Annotated[str, typer.Argument(metavar="STORAGE", help="The study's file, or a database URL.")]
Kept = Annotated[str | None, typer.Option("--storage", help="The file or database URL that the study is in.")]
Named = Annotated[str | None, typer.Option("--study", help="Which study, if the storage has several.")]
Trials = Annotated[int, typer.Option(min=1, help="Trials in total, those of earlier runs included.")]
Model = Annotated[str | None, typer.Option(help="The problem's model: a name, a Hugging Face id or a folder.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change an argument of the study (name, algorithm, storage, seed), of its resources (device, threads) "
        "or of its problem: --set bits=2,4,8 --set group_size=32. May be repeated.",
    ),
]
Algorithm = Annotated[
    str | None,
    typer.Option(
        help="auto, bayesian-map, chebyshev, evopress, frank-wolfe, ladder, map, map-elites, mm-mo, nested-map, nsga2, "
        "nsga3, parego, qnehvi, random, rco, sequential-knapsack, sobol, surrogate-evolution, tpe, or a plug-in. With "
        "settings after an @: "
        '"rco@steps=50,budgets.size_mb=80,88".'
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="OBJECTIVE=BOUND",
        help="Find the best candidate within a bound, not the whole front: --budget size_mb=80. May be repeated, and "
        "have several bounds with commas between.",
    ),
]
Prefer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BOUND",
        help='The region to search: --prefer "size_mb <= 80"; with >= for what is maximised. May be repeated.',
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="OBJECTIVE=NUMBER",
        help="How much each objective counts: --weight kl=2 --weight size_mb=1 searches near the best for that.",
    ),
]
Score = Annotated[
    str | None,
    typer.Option("--eval", metavar="COMMAND", help="A command that scores a model; {model} is its folder."),
]
Metric = Annotated[str, typer.Option(metavar="json:KEY", help="KEY of the JSON it prints last; 'last': its last word.")]
Direction = Annotated[
    Literal["max", "min"], typer.Option("--eval-direction", help="max or min: which scores are better.")
]
When = Annotated[
    Literal["every", "finalists"],
    typer.Option("--eval-when", help="every: an objective. finalists: only for the front, at the end."),
]
Seconds = Annotated[float | None, typer.Option(min=0.001, help="Begin nothing new after so many seconds.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Begin nothing new after so many forward tokens.")]
Hypervolume = Annotated[float | None, typer.Option(help="The hypervolume that is enough.")]
Patience = Annotated[
    int | None, typer.Option(min=1, help="Trials in a row that may fail to improve the front beyond its noise.")
]
Problems = Annotated[
    list[str],
    typer.Argument(
        metavar="PROBLEM...",
        help="As TARGET of run, with settings after an @: bit-toy@layers=100,scale=log or dtlz2@variables=6.",
    ),
]
Proxied = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]", help="As TARGET of run: whose proxies. Left out: the problem that --bench was made with."
    ),
]
Measured = Annotated[
    Path | None,
    typer.Option(
        "--bench",
        metavar="PATH",
        help="Measured allocations, as studies/proxy_bench.py writes them. Left out: those of smollm2-135m.",
    ),
]
Only = Annotated[str | None, typer.Option(metavar="A,B,...", help="Some proxies, with commas between.")]
Text = Annotated[
    int | None, typer.Option(min=1, help="Tokens of text for every table. Left out: what each usually takes.")
]
Algorithms = Annotated[
    str, typer.Option(metavar="A,B,...", help="Ours, auto and peers', with commas between: nsga2,auto,optuna-tpe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show all that is logged, what workers print, and tracebacks.")]
